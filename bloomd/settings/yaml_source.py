"""`bloomd.yaml` to values and their places.

The file is composed to PyYAML's node tree and never constructed: a node knows its line and column, no tag can make an
object, and each key is converted by itself, so that one reading finds every mistake. Errors show a value only where it
is one of a few known words: a secret may be anywhere in a file that has mistakes.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from msgspec import inspect

from bloomd.settings.files import Unreadable, read_text
from bloomd.settings.keys import KEYS, SECTIONS, Key, did_you_mean
from bloomd.settings.layers import Entry, Layer
from bloomd.settings.problems import Problem, Source

# What YAML calls a plain value that is not text; explicit tags beyond these mean nothing here.
_READINGS = {
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:timestamp": "a date",
    "tag:yaml.org,2002:null": "nothing",
    "tag:yaml.org,2002:value": "a default key",
    "tag:yaml.org,2002:merge": "a merge key",
}
_TEXT = "tag:yaml.org,2002:str"
_COLLECTIONS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}
_TRUE = {"yes", "true", "on"}

# A key that was misspelt looks like this; anything else in its place may be a secret and is not repeated.
_KEY_LIKE = re.compile(r"[A-Za-z][A-Za-z_-]{0,31}")
# Quoted words in PyYAML's sentences: words of the file, or else its own `<block end>`, escapes and single characters.
_QUOTED = re.compile(r"""\s*(['"])([^'"]+)\1""")
_OWN = re.compile(r"<.*|\\.*|.")


def read_yaml(path: Path) -> tuple[Layer, list[Problem], bool]:
    """The values of the file, what is wrong in it, and whether it could be read at all."""
    reader = _Reader(str(path))
    try:
        root = reader.compose(read_text(path))
    except Unreadable as error:
        reader.problems.append(Problem(Source("file", str(path)), str(error)))
        return {}, reader.problems, False
    except _Syntax as error:
        reader.problems.append(error.problem)
        return {}, reader.problems, False
    if root is not None:
        reader.document(root)
    return reader.layer, reader.problems, True


class _Syntax(Exception):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class _Reader:
    def __init__(self, file: str) -> None:
        self.file = file
        self.layer: Layer = {}
        self.problems: list[Problem] = []

    def compose(self, text: str) -> yaml.Node | None:
        try:
            return yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            sentence = _sentence(error)
            if "found ':'" in sentence:
                sentence += "; text that begins with a bracket needs quotes"
            line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
            raise _Syntax(self._problem(line, column, f"not YAML: {sentence}")) from None
        except yaml.reader.ReaderError as error:
            before = text[: error.position]
            line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
            raise _Syntax(self._problem(line, column, "not YAML: a control character")) from None
        except RecursionError:
            raise _Syntax(self._problem(None, None, "not a configuration: nested too deeply")) from None
        except (ValueError, OverflowError):
            # PyYAML converts the numbers of escapes (\U...) and of directives without a check of their size.
            raise _Syntax(self._problem(None, None, "not YAML: an escape or directive that is out of range")) from None

    def document(self, root: yaml.Node) -> None:
        if _is_null(root):
            return
        for name, key_node, node in self._pairs(root, "the configuration", [*SECTIONS, *_keys_of("")]):
            if name in SECTIONS:
                if not _is_null(node):
                    self._section(name, node)
            elif name in KEYS:
                self._value(KEYS[name], node)
            else:
                self._unknown(key_node, name, "")

    def _section(self, section: str, node: yaml.Node) -> None:
        for name, key_node, value in self._pairs(node, f"`{section}`", _keys_of(section)):
            if key := KEYS.get(f"{section}.{name}"):
                self._value(key, value)
            else:
                self._unknown(key_node, name, section)

    def _pairs(self, node: yaml.Node, what: str, names: list[str]) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode) or node.tag not in _COLLECTIONS:
            self._report(node, f"{what} must be a mapping: lines of `key: value`, such as `{names[0]}: ...`")
            return
        seen: dict[str, int] = {}
        for key_node, value in node.value:
            name = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or not isinstance(name, str):
                self._report(key_node, "a key must be a plain word")
            elif key_node.tag == "tag:yaml.org,2002:merge":
                self._report(key_node, "merge keys (`<<`) are not supported; write the keys out")
            elif name in seen:
                known = f" `{name}`" if name in names else ""
                self._report(key_node, f"the key{known} is here twice; it was first on line {seen[name]}")
            else:
                seen[name] = key_node.start_mark.line + 1
                yield name, key_node, value

    def _unknown(self, node: yaml.Node, name: str, section: str) -> None:
        if not _KEY_LIKE.fullmatch(name):
            self._report(node, "unknown key (is there a space behind the colon?)")
            return
        where = f" under `{section}`" if section else ""
        hint = did_you_mean(name, _keys_of(section) + ([] if section else list(SECTIONS)))
        if not hint:
            homes = [key for key in KEYS if key.rpartition(".")[2] == name] + [key for key in SECTIONS if key == name]
            hint = f" (did you mean `{homes[0]}`?)" if homes else ""
        self._report(node, f"unknown key `{name}`{where}{hint}")

    def _value(self, key: Key, node: yaml.Node) -> None:
        items: tuple[tuple[int, int], ...] = ()
        try:
            if isinstance(key.type, inspect.VarTupleType) and isinstance(node, yaml.SequenceNode):
                raw: object = [_text(item, key) for item in node.value]
                items = tuple((item.start_mark.line + 1, item.start_mark.column + 1) for item in node.value)
            else:
                raw = _scalar(node, key)
            value = key.convert(raw)
        except _Wrong as wrong:
            self._report(wrong.node, str(wrong), key.name)
        except ValueError as error:
            self._report(node, str(error), key.name)
        else:
            mark = node.start_mark
            source = Source("file", self.file, mark.line + 1, mark.column + 1, items=items)
            self.layer[key.name] = Entry(value, source)

    def _report(self, node: yaml.Node, text: str, key: str | None = None) -> None:
        self.problems.append(self._problem(node.start_mark.line + 1, node.start_mark.column + 1, text, key))

    def _problem(self, line: int | None, column: int | None, text: str, key: str | None = None) -> Problem:
        return Problem(Source("file", self.file, line, column), text, key)


def _sentence(error: yaml.MarkedYAMLError) -> str:
    context, problem = error.context or "", error.problem or "a syntax error"
    begin, end = error.context_mark, error.problem_mark
    if context.startswith("while") and begin and end and begin.line < end.line:
        context += f" that begins on line {begin.line + 1}"
    separator = ", " if problem.startswith("but") else ": "
    return _QUOTED.sub(
        lambda word: word[0] if _OWN.fullmatch(word[2]) else "",
        separator.join(part for part in (context, problem) if part),
    )


class _Wrong(ValueError):
    def __init__(self, node: yaml.Node, text: str) -> None:
        super().__init__(text)
        self.node = node


def _keys_of(section: str) -> list[str]:
    return [key.name.rpartition(".")[2] for key in KEYS.values() if key.section == section]


def _is_null(node: yaml.Node) -> bool:
    return node.tag == "tag:yaml.org,2002:null"


def _scalar(node: yaml.Node, key: Key) -> object:
    """The value of a node for this key: text, number, boolean, a list of one, or None."""
    if isinstance(node, yaml.ScalarNode) and _is_null(node):
        if key.optional:
            return None
        raise _Wrong(node, f"there is no value; expected {key.expected} (delete the line to have the default)")
    match key.type:
        case inspect.BoolType():
            return _plain(node, key, "bool").lower() in _TRUE
        case inspect.IntType():
            return _whole_number(node, key)
        case inspect.FloatType():
            return _number(node, key)
        case inspect.VarTupleType():
            return [_text(node, key)]
        case _:
            return _text(node, key)


def _text(node: yaml.Node, key: Key) -> str:
    if not isinstance(node, yaml.ScalarNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
        raise _Wrong(node, f"expected {key.expected}, not {kind}")
    if node.tag == _TEXT:
        return node.value
    if node.tag not in _READINGS:
        raise _Wrong(node, f"expected {key.expected}; tags mean nothing here")
    raise _Wrong(node, f"expected {key.expected}; YAML reads this as {_READINGS[node.tag]}: put it into quotes")


def _whole_number(node: yaml.Node, key: Key) -> int:
    digits = _plain(node, key, "int").replace("_", "")
    if re.fullmatch(r"[-+]?(0|[1-9][0-9]{0,17})", digits):
        return int(digits)
    raise _Wrong(node, f"expected {key.expected}{_trap(digits)}")


def _number(node: yaml.Node, key: Key) -> float:
    digits = _plain(node, key, "int", "float").replace("_", "")
    if re.fullmatch(r"[-+]?(0|[1-9][0-9]{0,17}|[0-9]{0,18}\.[0-9]*(e[-+]?[0-9]{1,3})?)", digits, re.IGNORECASE):
        return float(digits)
    raise _Wrong(node, f"expected {key.expected}{_trap(digits)}")


def _trap(digits: str) -> str:
    if ":" in digits:
        return "; YAML reads digits with a colon as a number to the base of 60: write one plain number"
    return "; write it as a plain decimal number, without a leading zero"


def _plain(node: yaml.Node, key: Key, *kinds: str) -> str:
    if isinstance(node, yaml.ScalarNode) and node.tag in {f"tag:yaml.org,2002:{kind}" for kind in kinds}:
        return node.value
    quoted = isinstance(node, yaml.ScalarNode) and node.style in ("'", '"')
    raise _Wrong(node, f"expected {key.expected}" + (", without quotes" if quoted else ""))
