"""The end of an init system at which a service tells how it is: a socket of sd_notify(3)."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_SECONDS = 20.0


class InitSystem:
    def __init__(self, listening: socket.socket, address: str) -> None:
        self._socket = listening
        self.environ = {"NOTIFY_SOCKET": address}

    def hears(self, seconds: float = PATIENCE_SECONDS) -> dict[str, str]:
        """The next message.

        Raises:
            TimeoutError: there was none for so long.
        """
        self._socket.settimeout(seconds)
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().split("\n"))

    def hears_of(self, name: str) -> dict[str, str]:
        """The next message with this variable, past those that only say that somebody is alive, or how."""
        while name not in (message := self.hears()):
            assert message.keys() <= {"WATCHDOG", "STATUS"}, message
        return message

    def has_heard_nothing(self) -> bool:
        return self.hears_nothing_for(0)

    def hears_nothing_for(self, seconds: float) -> bool:
        """Whether nobody tells anything for so long; else what was told is forgotten."""
        try:
            self.hears(seconds)
        except (BlockingIOError, TimeoutError):
            return True
        return False


@contextmanager
def init_system(address: str) -> Iterator[InitSystem]:
    """`address` as in NOTIFY_SOCKET: a path, or @ and a name that is no path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + address[1:] if address.startswith("@") else address)
        yield InitSystem(listening, address)
