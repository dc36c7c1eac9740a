"""Ids that sort by the time at which they were made: UUID version 7. And what a statement answers that says no more."""

import secrets
import time
from uuid import UUID

import msgspec


class Id(msgspec.Struct, frozen=True):
    """Which row it was."""

    id: str


def new_id() -> str:
    """A UUIDv7 (RFC 9562, section 6.2, method 3): milliseconds, a 12-bit fraction of one, 62 random bits.

    Rows made one after the other thus lie beside each other in an index, and the tasks of one batch keep their order.
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    fraction = rest * 4096 // 1_000_000
    bits = milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | secrets.randbits(62)
    return str(UUID(int=bits))
