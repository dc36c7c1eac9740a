"""Where a value came from, and what is wrong with it, in words for the person who wrote it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from bloomd.errors import Misconfigured

Kind = Literal["default", "preset", "file", "env_file", "environment", "database", "option"]

# From the weakest to the strongest: what is told later in this list wins.
KINDS: tuple[Kind, ...] = ("default", "preset", "file", "env_file", "environment", "database", "option")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value was told."""

    kind: Kind
    file: str | None = None
    line: int | None = None
    column: int | None = None
    name: str | None = None
    """The environment variable, the row of the database, or the option."""
    secret_file: str | None = None
    """The file that held the value, when what was told is only that file's name."""
    items: tuple[tuple[int, int], ...] = ()
    """Line and column of each item, when the value is a list in a file."""

    @property
    def where(self) -> str | None:
        """`bloomd.yaml:14` or `DATABASE_URL`; None for what was told nowhere in particular."""
        place = f"{self.file}:{self.line}" if self.file and self.line else self.file or self.name
        return f"{self.secret_file} ({place})" if self.secret_file else place

    def item(self, index: int) -> "Source":
        """Where one item of a list was told."""
        if not self.items:
            return self
        line, column = self.items[index]
        return Source(self.kind, self.file, line, column, self.name)


DEFAULT = Source("default")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where. The text never holds a secret."""

    source: Source
    text: str
    key: str | None = None

    def __str__(self) -> str:
        source = self.source
        place = [source.file] if source.file else []
        place += [str(number) for number in (source.line, source.column) if source.file and number]
        subject = source.name or (f"`{self.key}`" if self.key else None)
        return ": ".join(part for part in (":".join(place), subject, self.text) if part)


class SettingsError(Misconfigured):
    """The settings cannot be used: every problem there is, one a line, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=_position)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def _position(problem: Problem) -> tuple[int, str, int, int]:
    source = problem.source
    return KINDS.index(source.kind), source.file or "", source.line or 0, source.column or 0
