"""What the init system is told in the datagrams of sd_notify(3): ready, reloading, stopping, and alive.

systemd, for a unit of Type=notify, and newer versions of OpenRC name a socket in NOTIFY_SOCKET; where nobody does,
nothing is told. The programs that we start shall not speak for us: what the init system has put into the environment
for this is taken out of it.
"""

import os
import socket
import time
from collections.abc import Callable, Generator, MutableMapping
from contextlib import contextmanager

import structlog
import trio

log = structlog.stdlib.get_logger(__name__)

# How old the status may be that it shows, when it does not ask for a sign of life more often.
STATUS_SECONDS = 5.0

# The init system reads at once; should it hang, the event loop does not wait for it.
SEND_SECONDS = 0.1


class Notifier:
    """Tells the init system of this process. May be called from any task of its event loop."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        seconds, pid = int(environ.pop("WATCHDOG_USEC", "0")) / 1e6, environ.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watched = seconds > 0 and pid in ("", str(os.getpid()))
        self._interval = min(STATUS_SECONDS, seconds / 2) if self._watched else STATUS_SECONDS
        self._serving = False

    def ready(self, status: str) -> None:
        """It serves."""
        self._serving = True
        self._tell("READY=1", f"STATUS={status}")

    @contextmanager
    def reloading(self) -> Generator[None]:
        """It reads its configuration for as long as the block lasts."""
        if not self._serving:  # READY=1 would say that it serves
            yield
            return
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            if self._serving:
                self._tell("READY=1")

    def stopping(self) -> None:
        """It ends."""
        self._serving = False
        self._tell("STOPPING=1")

    async def keep_telling(self, status: Callable[[], str]) -> None:
        """Tell for ever how it is, while it serves. When the event loop stands still, a watchdog hears nothing."""
        while self._address:
            if self._serving:
                self._tell(f"STATUS={status()}", *["WATCHDOG=1"] * self._watched)
            await trio.sleep(self._interval)

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
                sending.settimeout(SEND_SECONDS)
                sending.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.warning("the init system could not be told", what=lines[0], error=str(error))
