"""The audit trail as a file, written page by page: no more of it than a page is ever in memory.

Its length is not known before its end, so it is sent in chunks, of which the last one says that the file is whole. When
the database goes away in the middle, or the reader takes nothing any more, that one is never sent, and the connection
is closed: a client sees that something is missing.
"""

import csv
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from io import StringIO

import msgspec
import structlog
import trio

from bloomd.errors import Unavailable
from bloomd.http.asgi import Receive, Scope, Send
from bloomd.http.requests import cancel_when_gone
from bloomd.runtime import audit
from bloomd.runtime.audit import Found, Wanted
from bloomd.runtime.database import Database
from bloomd.runtime.model import AuditEntry
from bloomd.runtime.pages import Page

log = structlog.stdlib.get_logger(__name__)

# So many entries are read at once: some hundred kilobytes.
PAGE_ENTRIES = 1000

# Who takes nothing for so long is not reading.
STALL_SECONDS = 30.0

# A spreadsheet takes a cell that begins so for a formula, and runs it: anybody who may name a worker could write one
# into the operator's. An apostrophe makes text of it (OWASP, "CSV Injection").
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

COLUMNS = ("time", "timestamp", "action", "entity_type", "entity_id", "actor", "detail", "id")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Format(msgspec.Struct, frozen=True):
    """How a file is written."""

    suffix: str
    content_type: str
    head: bytes
    encoded: Callable[[Sequence[AuditEntry]], bytes]


class ExportAnswer:
    """The answer, as an ASGI application of its own: a page is read when the one before it is on its way."""

    def __init__(self, database: Database, format: Format, wanted: Wanted) -> None:
        self._database = database
        self._format = format
        self._wanted = wanted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all that is wanted.

        Raises:
            Unavailable: the database is away, and nothing has been sent yet.
        """
        found = await self._page(Page(PAGE_ENTRIES))
        await send({"type": "http.response.start", "status": 200, "headers": self._headers()})
        if scope["state"]["head"]:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
            try:
                await self._send_pages(found, send)
            except Unavailable as error:
                log.warning("export broken off", error=str(error))
            except trio.TooSlowError:
                log.info("export broken off", reason=f"the reader took nothing for {STALL_SECONDS:.0f} s")
            nursery.cancel_scope.cancel()

    async def _page(self, page: Page) -> Found:
        return await audit.find(self._database, page, self._wanted)

    async def _send_pages(self, found: Found, send: Send) -> None:
        content = self._format.head + self._format.encoded(found.entries)
        while True:
            with trio.fail_after(STALL_SECONDS):
                await send({"type": "http.response.body", "body": content, "more_body": found.next is not None})
            if found.next is None:
                return
            found = await self._page(found.next)
            content = self._format.encoded(found.entries)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        name = f"bloomd-audit-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.{self._format.suffix}"
        return [
            (b"content-type", self._format.content_type.encode()),
            (b"content-disposition", f'attachment; filename="{name}"'.encode()),
        ]


def iso(at: int) -> str:
    """A time in epoch milliseconds as ISO 8601 has it, in UTC; nothing for one that no calendar has."""
    try:
        return (_EPOCH + timedelta(milliseconds=at)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except OverflowError:
        return ""


def cell(text: str | None) -> str:
    """A text as a cell that no spreadsheet runs."""
    if text is None:
        return ""
    return f"'{text}" if text.startswith(FORMULA) else text


def as_csv(entries: Sequence[AuditEntry]) -> bytes:
    """Rows of `COLUMNS`."""
    file = StringIO(newline="")
    csv.writer(file).writerows(
        (
            iso(entry.timestamp),
            entry.timestamp,
            *map(cell, (entry.action, entry.entity_type, entry.entity_id, entry.actor, entry.detail, entry.id)),
        )
        for entry in entries
    )
    return file.getvalue().encode()


def as_json_lines(entries: Sequence[AuditEntry]) -> bytes:
    """Entries as the API has them, each on a line."""
    return msgspec.json.Encoder().encode_lines(entries)


FORMATS = {
    "csv": Format("csv", "text/csv; charset=utf-8", (",".join(COLUMNS) + "\r\n").encode(), as_csv),
    "jsonl": Format("jsonl", "application/jsonl", b"", as_json_lines),
}
