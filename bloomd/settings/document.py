"""The documentation of the settings, made from the model: bloomd.yaml.example, and the keys of bloomd.yaml(5).

`make docs` writes both.
"""

import inspect
import json
import re
import textwrap
from collections.abc import Iterator

from bloomd.settings.environment import MEANINGS, VARIABLES
from bloomd.settings.keys import KEYS, SECTIONS, Key

_WIDTH = 100

_HEAD = """\
bloomd.yaml: the settings of bloomd, and what each is when nothing is said.

To set one, take the `#` off its line; `bloomd check` then says whether all is well, and `bloomd-ctl reload` brings it
into force. A setting is taken from the strongest of these that has it: the command line of `bloomd dev`; the API (kept
in the database); the environment; the env_file; this file; the default.

A secret can stand here, or in a file of its own that the key with `_file` behind it names. Whoever can read a secret
can use it: chown root:bloomd, chmod 640. A relative file name is taken from the directory of this file."""


def example() -> str:
    """The text of bloomd.yaml.example: it loads as it is, and with every `#key:` line uncommented."""
    lines = [*_comment(_HEAD), ""]
    for name in ("", *SECTIONS):
        if name:
            lines += [*_comment(_about(name)), f"{name}:"]
        indent = "  " if name else ""
        for key in _keys(name):
            lines += _comment(" ".join(_sentences(key)), indent)
            lines += [f"{indent}#{_short(key)}: {_value(key.default)}", ""]
    return "\n".join(lines)


def man() -> str:
    """The keys as an mdoc list, one subsection for each section of the file."""
    lines: list[str] = []
    for name in ("", *SECTIONS):
        if name:
            lines += [f".Ss {name}", *mdoc(_about(name))]
        lines.append(".Bl -tag -width Ds")
        for key in _keys(name):
            lines.append(f".It Cm {_short(key)}")
            for sentence in _sentences(key):
                lines += mdoc(sentence)
            if key.default is not None:
                lines += mdoc(f"The default is {_value(key.default)}.")
        lines.append(".El")
    return "\n".join(lines) + "\n"


def _keys(section: str) -> Iterator[Key]:
    return (key for key in KEYS.values() if key.section == section)


def _short(key: Key) -> str:
    return key.name.rpartition(".")[2]


def _about(section: str) -> str:
    return inspect.cleandoc(SECTIONS[section].__doc__ or "")


def _sentences(key: Key) -> Iterator[str]:
    yield key.description
    if key.form not in ("text", "`true` or `false`"):
        yield f"{key.form[0].upper()}{key.form[1:]}."
    variables = [
        f"{variable} ({MEANINGS[variable]})" if variable in MEANINGS else variable
        for variable, name in VARIABLES.items()
        if name == key.name
    ]
    if variables:
        yield f"In the environment: {'; '.join(variables)}."


def _value(value: object) -> str:
    """A default as YAML, which JSON is a part of."""
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value)


def _comment(text: str, indent: str = "") -> Iterator[str]:
    margin = f"{indent}# "
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            yield f"{indent}#"
        yield from textwrap.wrap(
            paragraph, _WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
        )


def mdoc(text: str) -> Iterator[str]:
    """Text as lines of mdoc, each sentence on a line of its own, as its conventions have it."""
    for sentence in re.split(r"(?<=\.) (?=[A-Z`])", text):
        # A page(8) that is referred to stands in a line of its own, with the punctuation that follows it.
        for number, piece in enumerate(re.split(r" ?([\w.-]+\(\d\)[.,;:]?) ?", sentence)):
            if number % 2:
                yield re.sub(r"(.*)\((\d)\)(.?)", r".Xr \1 \2 \3", piece).rstrip()
            elif piece:
                yield _roff(piece)


def _roff(text: str) -> str:
    roff = text.replace("\\", r"\e").replace("-", r"\-").replace('"', r"\(dq").replace("'", r"\(aq")
    roff = re.sub(r"`([^`]*)`", r"\\(oq\1\\(cq", roff)
    return rf"\&{roff}" if roff.startswith(".") else roff
