"""Something that is found out once for all checks: a value, or why there is none.

One check reports what a fact's trouble is; the others, which need the value, are skipped by merely asking for it.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, cast

import trio

from bloomd.doctor.finding import Skip
from bloomd.errors import Misconfigured, Unavailable

T = TypeVar("T")

# For each fact and for each check. What is well answers within milliseconds.
SECONDS = 4.0


class Fact(Generic[T]):
    """Something that is found out once."""

    def __init__(self, without: str) -> None:
        """`without`: why whatever needs it cannot be looked at when there is none."""
        self._without = without
        self._value: T | None = None
        self._trouble: Exception | None = Skip(without)
        self.asked = self.answered = 0.0
        """When, in epoch seconds."""

    async def find(self, look: Callable[[], Awaitable[T]]) -> None:
        """Look. Ends in time, whatever hangs, and never raises what can go wrong."""
        trouble: Exception | None = Unavailable(f"no answer within {SECONDS:g} s")
        self.asked = time.time()
        with trio.move_on_after(SECONDS):
            try:
                self._value = await look()
                trouble = None
            except (Skip, Unavailable, Misconfigured) as error:
                trouble = error
        self.answered = time.time()
        self._trouble = trouble

    @property
    def known(self) -> bool:
        return self._trouble is None

    @property
    def troubled(self) -> bool:
        return isinstance(self._trouble, Unavailable | Misconfigured)

    @property
    def refused(self) -> bool:
        """Whether it is there, and not as it has to be."""
        return isinstance(self._trouble, Misconfigured)

    @property
    def value(self) -> T:
        """Raises Skip when there is none."""
        self.need()
        return cast("T", self._value)

    def need(self) -> None:
        """Raises Skip when there is no value."""
        if isinstance(self._trouble, Skip):
            raise self._trouble
        if self._trouble:
            raise Skip(self._without)

    @property
    def trouble(self) -> Unavailable | Misconfigured | None:
        """What went wrong. Raises Skip when there was nothing to look at."""
        if isinstance(self._trouble, Skip):
            raise self._trouble
        assert self._trouble is None or isinstance(self._trouble, Unavailable | Misconfigured)
        return self._trouble
