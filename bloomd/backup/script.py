"""A dump's SQL, run over a connection of ours.

psql would do it, too, but not in one transaction with what is to be dropped before; and to psql a script may say `\\!`,
which runs any command.
"""

import re
from collections.abc import AsyncIterator
from typing import Any

from psycopg import pq

from bloomd.backup.archive import BadArchive
from bloomd.errors import Unavailable
from bloomd.postgres import Connection

_COPY = re.compile(rb"COPY .* FROM stdin;\s*$")
# Owners and grants are those of another server, whose users this one need not have; everything belongs to who restores.
# The rest wants more rights than he has, or a server as new as the pg_dump.
_LEFT_OUT = re.compile(
    rb"ALTER .* OWNER TO .*;\s*$|(GRANT|REVOKE) .*;\s*$|ALTER DEFAULT PRIVILEGES .*;\s*$"
    rb"|COMMENT ON (EXTENSION|SCHEMA) .*;\s*$|CREATE SCHEMA public;\s*$"
    rb"|SET (transaction_timeout|default_table_access_method) .*;\s*$|\\(un)?restrict\b"
)
_QUOTES = re.compile(rb"--|'|\"|\$\w*\$")
# These would end our transaction. (A function with BEGIN ATOMIC has an END of its own.)
_ENDS = re.compile(rb"(COMMIT|ROLLBACK|ABORT|END|PREPARE TRANSACTION)\b", re.IGNORECASE)
_ATOMIC = re.compile(rb"\s*BEGIN ATOMIC\b", re.IGNORECASE)
_END_OF_COPY = b"\\.\n"
# The last that pg_dump and pg_restore write. What is cut off between two statements runs as well as a whole one.
_COMPLETE = b"-- PostgreSQL database dump complete"


async def run(connection: Connection[Any], source: AsyncIterator[bytes]) -> None:
    """Run it in the transaction that the connection is in.

    Raises:
        BadArchive: the script is less than a dump: it was cut off; or more: it has commands for psql.
        psycopg.Error: the server refuses it.
    """
    lines = _Lines(source)
    text: list[bytes] = []
    quote, atomic, complete = None, False, False
    while line := await lines.next():
        if quote is None:
            if _ENDS.match(line):
                if not atomic:
                    raise BadArchive(f"the dump ends our transaction: {line[:40].decode(errors='replace').strip()}")
                atomic = False
            atomic = atomic or bool(_ATOMIC.match(line))
            complete = complete or line.startswith(_COMPLETE)
            if _LEFT_OUT.match(line):
                continue
            if line.startswith(b"\\"):
                raise BadArchive(f"the dump has a command for psql: {line[:40].decode(errors='replace').strip()}")
            if _COPY.match(line):
                await _execute(connection, text)
                async with connection.cursor().copy(line) as copy:
                    async for rows in lines.to_end_of_copy():
                        await copy.write(rows)
                continue
        quote = _quote_after(line, quote)
        text.append(line)
    if not complete:
        raise BadArchive("the dump is cut off: it does not end as a dump does")
    await _execute(connection, text)


async def _execute(connection: Connection[Any], text: list[bytes]) -> None:
    await connection.execute(b"".join(text))
    text.clear()
    if connection.info.transaction_status is not pq.TransactionStatus.INTRANS:
        raise Unavailable("the dump has ended our transaction: what is in the database now is a part of it")


def _quote_after(line: bytes, quote: bytes | None) -> bytes | None:
    """The quote that is open at the end of the line, if one is, when this one was open before it."""
    at = 0
    while True:
        if quote is not None:
            at = line.find(quote, at)
            if at < 0:
                return quote
            at += len(quote)
            quote = None
        found = _QUOTES.search(line, at)
        if not found or found[0] == b"--":
            return None
        quote, at = found[0], found.end()


class _Lines:
    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._waiting = bytearray()

    async def next(self) -> bytes:
        """The next line; nothing at the end."""
        looked_at = 0
        while (end := self._waiting.find(b"\n", looked_at)) < 0:
            looked_at = len(self._waiting)
            more = await anext(self._source, b"")
            if not more:
                end = len(self._waiting)
                break
            self._waiting += more
        line = bytes(self._waiting[: end + 1])
        del self._waiting[: end + 1]
        return line

    async def to_end_of_copy(self) -> AsyncIterator[bytes]:
        """What comes before the line that ends a COPY."""
        looked_at = 0  # a row may be many pieces long, of which each is looked at once
        while not self._waiting.startswith(_END_OF_COPY):
            end = self._waiting.find(b"\n" + _END_OF_COPY, looked_at)
            if end >= 0:
                yield bytes(self._waiting[: end + 1])
                del self._waiting[: end + 1]
                break
            # Whole lines only: the end may come in two pieces.
            whole = self._waiting.rfind(b"\n", looked_at) + 1
            if whole:
                yield bytes(self._waiting[:whole])
                del self._waiting[:whole]
            looked_at = max(0, len(self._waiting) - len(_END_OF_COPY))
            more = await anext(self._source, b"")
            if not more:
                raise BadArchive("the dump is cut off: a COPY has no end")
            self._waiting += more
        del self._waiting[: len(_END_OF_COPY)]
