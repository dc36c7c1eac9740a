"""What a command line may hold, taken from its argparse parser."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# The rest of what a metavar names is nothing that a shell could know.
_KINDS: dict[str, Literal["file", "directory"]] = {"FILE": "file", "SOCKET": "file", "DIR": "directory"}


@dataclass(frozen=True)
class Value:
    """What an option or an argument is given."""

    name: str
    choices: tuple[str, ...]
    kind: Literal["file", "directory", "word"]


@dataclass(frozen=True)
class Option:
    """A flag, when it takes no value."""

    strings: tuple[str, ...]
    help: str
    value: Value | None
    value_may_be_missing: bool
    repeatable: bool


@dataclass(frozen=True)
class Argument:
    help: str
    value: Value
    required: bool
    repeatable: bool


@dataclass(frozen=True)
class Command:
    """A program, a group of commands, or a command; `words` are what one types for it after the program's name."""

    name: str
    words: tuple[str, ...]
    summary: str
    description: str
    options: tuple[Option, ...]
    exclusive: tuple[tuple[Option, ...], ...]
    """The options again, those together of which only one may be given."""
    arguments: tuple[Argument, ...]
    commands: "dict[str, Command]"

    def all(self) -> "Iterator[Command]":
        yield self
        for command in self.commands.values():
            yield from command.all()

    def leaves(self) -> "Iterator[Command]":
        """The commands that do something."""
        return (command for command in self.all() if not command.commands)


def program(parser: argparse.ArgumentParser) -> Command:
    return _command(parser, parser.prog, (), "")


def _command(parser: argparse.ArgumentParser, name: str, words: tuple[str, ...], summary: str) -> Command:
    options: dict[argparse.Action, Option] = {}
    arguments: list[Argument] = []
    commands: dict[str, Command] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            commands = {
                word: _command(of, name, (*words, word), summaries[word]) for word, of in action.choices.items()
            }
        elif action.option_strings:
            options[action] = Option(
                tuple(action.option_strings),
                _help(action),
                None if action.nargs == 0 else _value(action),
                action.nargs == "?",
                isinstance(action, argparse._AppendAction),
            )
        else:
            arguments.append(
                Argument(_help(action), _value(action), action.nargs not in ("?", "*"), action.nargs in ("*", "+"))
            )
    groups = {action: group for group in parser._mutually_exclusive_groups for action in group._group_actions}
    exclusive: dict[object, list[Option]] = {}
    for action, option in options.items():
        exclusive.setdefault(groups.get(action, action), []).append(option)
    return Command(
        name,
        words,
        summary,
        parser.description or "",
        tuple(options.values()),
        tuple(map(tuple, exclusive.values())),
        tuple(arguments),
        commands,
    )


def _help(action: argparse.Action) -> str:
    return (action.help or "") % vars(action)


def _value(action: argparse.Action) -> Value:
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return Value(name.lower(), tuple(action.choices or ()), _KINDS.get(name, "word"))
