"""What the program reads on stdin: the context, the task, and in which form the answer is wanted. Pure."""

from collections.abc import Sequence

import msgspec

JSON_WANTED = "Answer with one JSON value and nothing else: no explanation around it, and no code fence."


class File(msgspec.Struct, frozen=True):
    """A file that a hint named, or the part of it that there was room for."""

    name: str
    """Below the worker's root."""
    text: str
    cut: bool = False


class Note(msgspec.Struct, frozen=True):
    """A hint that is no file: its own words, or a sentence that stands in the place of one."""

    text: str


Hint = File | Note


def build(prompt: str, hints: Sequence[Hint], desired_format: str) -> str:
    """The whole text. A task without hints that wants text is its prompt and nothing else."""
    parts = [f"Context:\n\n{chr(10).join(map(_shown, hints))}"] if hints else []
    parts.append(f"Task:\n\n{prompt}" if hints else prompt)
    if desired_format == "json":
        parts.append(JSON_WANTED)
    return "\n\n".join(parts)


def _shown(hint: Hint) -> str:
    if isinstance(hint, Note):
        return f"- {hint.text}"
    name = hint.name.replace("\n", " ")
    cut = "\n[the rest did not fit]" if hint.cut else ""
    return f'- the file {name}:\n<file name="{name}">\n{hint.text}{cut}\n</file>'
