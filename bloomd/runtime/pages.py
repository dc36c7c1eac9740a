"""Long lists in pages, newest first: an opaque cursor (the time and id of the last row) names the next page."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

Row = TypeVar("Row")

END_OF_TIME = 2**63 - 1


class BadCursor(ValueError):
    """This cursor was not made by a list of this server; leave it out to start at the newest."""


class Page(msgspec.Struct, frozen=True):
    """Which part of a list: `limit` rows that come after the row (`at`, `id`)."""

    limit: int = 100
    at: int = END_OF_TIME
    id: str = ""

    @classmethod
    def after(cls, cursor: str | None, limit: int) -> "Page":
        """The page that a cursor names; the first one without a cursor.

        Raises:
            BadCursor: not one of ours.
        """
        if not cursor:
            return cls(limit)
        try:
            at, _, id = base64.urlsafe_b64decode(cursor.encode()).decode().partition(" ")
            page = cls(limit, int(at), id)
        except (ValueError, binascii.Error):
            raise BadCursor(str(BadCursor.__doc__)) from None
        if not 0 <= page.at <= END_OF_TIME or "\x00" in id:
            raise BadCursor(str(BadCursor.__doc__))
        return page

    def next(self, rows: Sequence[Row], key: Callable[[Row], tuple[int, str]]) -> str | None:
        """The cursor of the page after these rows, or None when they were the last."""
        if len(rows) < self.limit:
            return None
        at, id = key(rows[-1])
        return Page(self.limit, at, id).cursor

    def before(self, at: int) -> "Page":
        """What of it is older than this time."""
        return Page(self.limit, at) if at <= self.at else self

    @property
    def cursor(self) -> str:
        """The name by which a client asks for it."""
        return base64.urlsafe_b64encode(f"{self.at} {self.id}".encode()).decode()
