"""Layers of values, laid over each other: the strongest that tells a key wins."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bloomd.settings.files import Unreadable, read_text
from bloomd.settings.keys import KEYS, SECRETS
from bloomd.settings.problems import Kind, Problem, Source


@dataclass(frozen=True, slots=True)
class Entry:
    """A converted value and where it was told."""

    value: object = field(repr=False)
    source: Source


# What one kind of source told, by dotted key.
Layer = dict[str, Entry]


def told(values: Mapping[str, object] | None, kind: Kind) -> tuple[Layer, list[Problem]]:
    """Values that the program itself passes, such as those of its command line, as a layer."""
    layer: Layer = {}
    problems: list[Problem] = []
    for name, value in (values or {}).items():
        source = Source(kind)
        try:
            layer[name] = Entry(KEYS[name].convert(value), source)
        except ValueError as error:
            problems.append(Problem(source, str(error), name))
    return layer, problems


def overlay(layers: Iterable[Layer]) -> tuple[Layer, list[Problem]]:
    """One layer of these, the weakest first.

    A secret and the file that holds it are two ways to tell the same thing: the stronger layer's way wins, and the
    other way is as if it had not been told. In one layer both are a contradiction.
    """
    merged: Layer = {}
    problems: list[Problem] = []
    for layer in layers:
        for secret in SECRETS:
            direct, in_file = layer.get(secret), layer.get(f"{secret}_file")
            if direct and in_file and direct.value is not None and in_file.value is not None:
                text = f"`{secret}` is told here and by `{secret}_file` as well; keep one of them"
                problems.append(Problem(replace(direct.source, name=None), text))
            if direct or in_file:
                merged.pop(secret, None)
                merged.pop(f"{secret}_file", None)
        merged.update(layer)
    return merged, problems


def read_secret_files(layer: Layer) -> list[Problem]:
    """Put the content of every secret file in the place of its secret."""
    problems: list[Problem] = []
    for secret in SECRETS:
        named = layer.get(f"{secret}_file")
        if named is None or not isinstance(named.value, str):
            continue
        path = beside(named)
        try:
            text = read_text(path).rstrip("\r\n")
            if not text.strip():
                raise Unreadable("it is empty")
            value = KEYS[secret].convert(text)
        except (Unreadable, ValueError) as error:
            problems.append(Problem(named.source, f"{path}: {error}", f"{secret}_file"))
        else:
            layer[secret] = Entry(value, replace(named.source, secret_file=str(path)))
    return problems


def beside(entry: Entry) -> Path:
    """The file that an entry names; a relative name is taken from the directory of the file that holds it."""
    path = Path(str(entry.value))
    return Path(entry.source.file).parent / path if entry.source.file else path
