"""How often one client may do what costs it nothing: fixed windows, in memory, for each node on its own.

Whoever has IPv6 has a network of 2^64 addresses, so of those a whole /64 is one client.
"""

from collections import OrderedDict
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

import trio

from bloomd.http.problems import Problem

# An attacker with many addresses makes us forget the oldest windows, not run out of memory.
MAX_CLIENTS = 10_000


class Limiter:
    """At most `limit` of something within `seconds`, for each client."""

    def __init__(self, *, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self._windows: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def spend(self, client: str) -> None:
        """Count one more.

        Raises:
            Problem: 429, that was one too many; it says when to come back.
        """
        client, now = _one(client), trio.current_time()
        until, spent = self._windows.get(client, (0.0, 0))
        if now >= until:
            until, spent = now + self.seconds, 0
            self._windows.pop(client, None)
            self._windows[client] = (until, 0)
            if len(self._windows) > MAX_CLIENTS:
                self._windows.popitem(last=False)
        if spent >= self.limit:
            wait = max(1, round(until - now))
            raise Problem(
                429,
                f"Too many requests: {self.limit} are allowed within {self.seconds:.0f} s; come back in {wait} s",
                type="too-many-requests",
                headers={
                    "retry-after": str(wait),
                    "ratelimit-limit": str(self.limit),
                    "ratelimit-remaining": "0",
                    "ratelimit-reset": str(wait),
                },
            )
        self._windows[client] = (until, spent + 1)

    def forgive(self, client: str) -> None:
        """Take back what was counted last."""
        client = _one(client)
        if client in self._windows:
            until, spent = self._windows[client]
            self._windows[client] = (until, max(0, spent - 1))


@lru_cache(maxsize=1024)
def _one(client: str) -> str:
    """Whom this address is counted as."""
    try:
        address = ip_address(client)
    except ValueError:
        return client
    return str(IPv6Address(int(address) >> 64 << 64)) if isinstance(address, IPv6Address) else client
