"""The format of `/etc/bloom-runtime.env`: NAME=value lines, parsed and never run.

A shell that sources the file and this parser agree on lines as people write them, with two differences: nothing is
expanded (`$` and `` ` `` are characters like any other), and an unquoted value may hold blanks and `&`, which a
database URL often does.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bloomd.settings.problems import Problem, Source

_LINE = re.compile(r"\s*(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>.*)")
_SINGLE = re.compile(r"'(?P<value>[^']*)'\s*(?:#.*)?")
_DOUBLE = re.compile(r'"(?P<value>(?:[^"\\]|\\.)*)"\s*(?:#.*)?')
_COMMENT = re.compile(r"(?:^|\s)#.*")
# What a backslash protects inside double quotes, as in a shell; elsewhere it is a backslash.
_ESCAPE = re.compile(r'\\(["\\$`])')


@dataclass(frozen=True, slots=True)
class Variable:
    """What a variable was set to, and where."""

    value: str = field(repr=False)
    source: Source


def parse(text: str, path: Path) -> tuple[Mapping[str, Variable], list[Problem]]:
    """The variables of the file (the last setting of a name counts), and the lines that are none."""
    variables: dict[str, Variable] = {}
    problems: list[Problem] = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.rstrip()
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        value = _unquote(match["value"].lstrip()) if match else None
        if match is None:
            problems.append(Problem(Source("env_file", str(path), number), "expected NAME=value"))
        elif value is None:
            source = Source("env_file", str(path), number, name=match["name"])
            problems.append(Problem(source, "the value's quotes do not end where the line ends"))
        else:
            variables[match["name"]] = Variable(value, Source("env_file", str(path), number, name=match["name"]))
    return variables, problems


def _unquote(value: str) -> str | None:
    if value.startswith("'"):
        match = _SINGLE.fullmatch(value)
        return match["value"] if match else None
    if value.startswith('"'):
        match = _DOUBLE.fullmatch(value)
        return _ESCAPE.sub(r"\1", match["value"]) if match else None
    return _COMMENT.sub("", value, count=1).rstrip()
