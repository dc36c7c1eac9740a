"""Commands and options as parts of a manual page, in mdoc."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from bloomd.settings.document import mdoc
from docs.commands import Argument, Command, Option, Value

# With more options than this, a command's list of them says more than its first line.
_READABLE = 3


def renewed(page: str, region: str, text: str) -> str:
    """The page with this text between the two lines that mark the region."""
    begin, end = (f'.\\" {region}: {edge}; `make docs` renews it.\n' for edge in ("begin", "end"))
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the page has no region {region}")
    return before + begin + text + end + after


def synopsis(command: Command) -> str:
    """One form of the program, with all that it may be given."""
    given = _choices(command, lambda option: option.strings[-1] != "--help")
    lines = [f".{given}" for given in [*given, *map(_argument, command.arguments)]]
    return _text([f".Nm {command.name}", f".Cm {_words(command)}", *lines])


def commands(program: Command, elsewhere: Collection[str] = ()) -> str:
    """A list of what it can do; a command that has a page elsewhere is listed without its options."""
    everywhere = {option.strings for option in program.options}

    def own(option: Option) -> bool:
        return option.strings not in everywhere

    lines = [".Bl -tag -width Ds"]
    for command in program.leaves():
        given = _choices(command, own)
        if len(given) > _READABLE:
            given = ["Oo Ar option ... Oc"]
        lines.append(f".It {' '.join([f'Cm {_words(command)}', *given, *map(_argument, command.arguments)])}")
        lines += mdoc(command.description)
        if given and command.words[0] not in elsewhere:
            lines += _list(list(filter(own, command.options)))
    return _text([*lines, ".El"])


def options(command: Command) -> str:
    return _text(_list(command.options))


def names(groups: Mapping[str, Iterable[str]]) -> str:
    """Names that belong together, under what they are about."""
    lines = [".Bl -tag -width Ds"]
    for group, members in groups.items():
        lines += [f".It {group}", f".Cm {' , '.join(members)} ."]
    return _text([*lines, ".El"])


def _list(options: Collection[Option]) -> Iterator[str]:
    yield ".Bl -tag -width Ds"
    for option in options:
        yield f".It {' , '.join(_given(string, option) for string in option.strings)}"
        yield from mdoc(f"{option.help[0].upper()}{option.help[1:]}.")
    yield ".El"


def _choices(command: Command, listed: Callable[[Option], bool]) -> list[str]:
    """What may be left out, each in brackets; of some, only one can be given."""
    choices = (list(filter(listed, choice)) for choice in command.exclusive)
    return [f"Oo {' | '.join(_once_or_more(option) for option in choice)} Oc" for choice in choices if choice]


def _once_or_more(option: Option) -> str:
    return _given(option.strings[0], option) + (" ..." if option.repeatable else "")


def _given(string: str, option: Option) -> str:
    flag = f"Fl {_escaped(string[1:])}"
    if option.value is None:
        return flag
    return f"{flag} Oo {_value(option.value)} Oc" if option.value_may_be_missing else f"{flag} {_value(option.value)}"


def _argument(argument: Argument) -> str:
    given = _value(argument.value) + (" ..." if argument.repeatable else "")
    return given if argument.required else f"Oo {given} Oc"


def _value(value: Value) -> str:
    return f"Cm {' | '.join(value.choices)}" if value.choices else f"Ar {value.name}"


def _words(command: Command) -> str:
    return _escaped(" ".join(command.words))


def _escaped(text: str) -> str:
    return text.replace("-", r"\-")


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"
