"""The catalogue of keys: what the model says about each, under its dotted name."""

import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import msgspec
from msgspec import inspect

from bloomd.settings.model import Section, Settings


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the configuration."""

    name: str
    """Dotted: `http.bind`."""
    annotation: object
    type: inspect.Type
    """The type that a value has, None apart."""
    optional: bool
    default: object
    description: str

    @property
    def section(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def secret(self) -> bool:
        return self.name in SECRETS

    def convert(self, value: object) -> object:
        """The value as the model has it.

        Raises ValueError with a sentence that says what was expected.
        """
        try:
            converted: object = msgspec.convert(value, self.annotation)
        except msgspec.ValidationError as error:
            raise ValueError(f"expected {self.expected}{self._suggestion(value)}") from error
        texts = cast("tuple[object, ...]", converted) if isinstance(converted, tuple) else (converted,)
        if not all(text.isprintable() for text in texts if isinstance(text, str)):
            raise ValueError("expected text without line breaks and other control characters")
        return cast("object", converted)

    @property
    def expected(self) -> str:
        """What a value must be, as words after "expected"."""
        if isinstance(self.type, inspect.FloatType):  # each of them is a time
            unit = "days" if self.name.endswith("_days") else "seconds"
            example = "" if self.default is None else f", such as {self.default:g}"
            return f"a number of {unit}{_bounds(self.type)}{example}"
        return self.form

    @property
    def form(self) -> str:
        """The same for who knows what it is about."""
        match self.type:
            case inspect.BoolType():
                return "`true` or `false`"
            case inspect.IntType():
                return f"a whole number{_bounds(self.type)}"
            case inspect.FloatType():
                return f"a number{_bounds(self.type)}"
            case inspect.LiteralType(values=values):
                return "one of " + ", ".join(f"`{value}`" for value in self._choices(values))
            case inspect.VarTupleType(min_length=least):
                return "text or a list of text" + (", with one item at least" if least else "")
            case inspect.StrType(pattern=str()):
                return f'text such as "{self.default}"'
            case inspect.StrType(min_length=int(least)):
                return f"text of {least} characters or more"
            case _:
                return "text"

    def _choices(self, values: Iterable[object]) -> list[str]:
        # msgspec sorts the values of a Literal; the model's order says more (debug before info).
        order = typing.get_args(typing.get_args(self.annotation)[0])
        return sorted((str(value) for value in values), key=order.index)

    def _suggestion(self, value: object) -> str:
        if isinstance(self.type, inspect.LiteralType) and isinstance(value, str):
            return did_you_mean(value, [str(choice) for choice in self.type.values])
        return ""


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """` (did you mean ...?)`, or nothing when no word comes close."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""


def _bounds(number: inspect.IntType | inspect.FloatType) -> str:
    if number.ge is not None and number.le is not None:
        return f" from {number.ge:g} to {number.le:g}" if number.le < 10**6 else f" from {number.ge} to {number.le}"
    return f" above {number.gt:g} and up to {number.le:g}" if number.gt is not None and number.le is not None else ""


def _key(name: str, annotation: object, default: object) -> Key:
    metadata = inspect.type_info(annotation)
    assert isinstance(metadata, inspect.Metadata), f"`{name}` has no description"
    type_ = metadata.type
    optional = isinstance(type_, inspect.UnionType)
    if isinstance(type_, inspect.UnionType):
        (type_,) = (part for part in type_.types if not isinstance(part, inspect.NoneType))
    (description,) = (meta.description for meta in typing.get_args(annotation)[1:] if meta.description)
    return Key(name, annotation, type_, optional, default, description)


def _section_types() -> dict[str, type[Section]]:
    hints = typing.get_type_hints(Settings)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, Section)}


def _catalogue(section: type[Section], prefix: str) -> Iterable[Key]:
    hints = typing.get_type_hints(section, include_extras=True)
    for field in msgspec.structs.fields(section):
        if field.name not in SECTIONS or prefix:
            yield _key(prefix + field.name, hints[field.name], field.default)


# The sections by name, in the order of the model.
SECTIONS: Mapping[str, type[Section]] = _section_types()

# All keys by their dotted names, in the order of the model; those above all sections first.
KEYS: Mapping[str, Key] = {
    key.name: key
    for name, section in {"": Settings, **SECTIONS}.items()
    for key in _catalogue(section, f"{name}." if name else "")
}

# The keys whose values are shown to nobody. What makes a key one of them is that a file can hold its value.
SECRETS: tuple[str, ...] = tuple(name for name in KEYS if f"{name}_file" in KEYS)


def build(values: Mapping[str, object]) -> Settings:
    """Settings of these converted values by their dotted names, and defaults for the rest."""
    sections: dict[str, dict[str, object]] = {name: {} for name in ("", *SECTIONS)}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        sections[section][key] = value
    own = sections.pop("")
    return msgspec.structs.replace(Settings(), **own, **{name: SECTIONS[name](**of) for name, of in sections.items()})


def flatten(settings: Settings) -> dict[str, object]:
    """The values by their dotted names."""
    values: dict[str, object] = {}
    for name in KEYS:
        section, _, key = name.rpartition(".")
        values[name] = getattr(getattr(settings, section) if section else settings, key)
    return values
