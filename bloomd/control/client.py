"""A client of the control socket: plain and blocking, and of imports only a little of the standard library."""

from __future__ import annotations

import errno
import json
import os
import socket

from bloomd.control.codes import BUSY, MAX_LINE, NOT_PERMITTED

TYPE_CHECKING = False  # importing typing would cost as much as the socket module
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Self

    from bloomd.control.answers import Json

_CHUNK = 64 * 1024


class ControlFailure(Exception):
    """A call that brought no result; the text is a sentence for the operator."""


class CannotReach(ControlFailure):
    """No daemon answers at this path."""


class NotPermitted(ControlFailure):
    """The daemon, or the mode of its socket, does not let this user."""


class Failed(ControlFailure):
    """The daemon answered with an error."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class TooLong(ControlFailure):
    """The call is longer than the daemon takes, and was not made."""


class Client:
    """One connection to the daemon; use it in a `with` block.

    `timeout` is how many seconds the daemon may be silent before that counts as being out of reach.
    """

    def __init__(self, path: str, timeout: float = 10.0) -> None:
        self._path = path
        self._timeout = timeout
        self._unread = b""
        self._last_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(path)
        except OSError as error:
            self.close()
            raise self._explained(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, /, **params: Any) -> Any:
        """Call a method and return its result; notifications that come before it are dropped.

        Raises:
            CannotReach: nobody answers, or in no language we know.
            NotPermitted: this user may not call the method.
            TooLong: what is said has more than `MAX_LINE` bytes.
            Failed: the call was made and failed.
        """
        self._send(method, params)
        while (message := self._receive()) and "method" in message:
            pass
        return _result(message)

    def notifications(self, method: str, /, **params: Any) -> Iterator[tuple[str, Any]]:
        """Call a method that answers with a stream: yields the name and parameters of each notification until it ends.

        Raises: as `call` does.
        """
        self._send(method, params)
        while (message := self._receive()) and "method" in message:
            yield message["method"], message.get("params")
        _result(message)

    def _send(self, method: str, params: dict[str, Any]) -> None:
        self._last_id += 1
        request = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}
        line = json.dumps(request).encode()
        if len(line) > MAX_LINE:
            raise TooLong(f"the control socket takes up to {MAX_LINE >> 20} MiB a call, and this is {len(line)} bytes")
        try:
            self._socket.sendall(line + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # a server that turns us away says why before it hangs up: that is still to be read
        except OSError as error:
            raise self._explained(error) from error

    def _receive(self) -> dict[str, Any]:
        chunks = [self._unread]
        while b"\n" not in chunks[-1]:
            try:
                chunk = self._socket.recv(_CHUNK)
            except OSError as error:
                raise self._explained(error) from error
            if not chunk:
                raise CannotReach(f"the daemon at {self._path} closed the connection without an answer")
            chunks.append(chunk)
        line, _, self._unread = b"".join(chunks).partition(b"\n")
        try:
            message: Json = json.loads(line)
        except ValueError:
            message = None
        if isinstance(message, dict) and message.get("jsonrpc") == "2.0":
            return message
        raise CannotReach(f"what answers at {self._path} is not bloomd")

    def _explained(self, error: OSError) -> ControlFailure:
        path = self._path
        if isinstance(error, TimeoutError | BlockingIOError):
            return CannotReach(f"the daemon at {path} did not answer within {self._timeout:g} seconds: busy or stuck")
        match error.errno:
            case errno.ENOENT | errno.ENOTDIR:
                return CannotReach(f"there is no socket {path}: is bloomd running, and with this control.socket?")
            case errno.ECONNREFUSED if os.path.isdir(path) or os.path.isfile(path):
                return CannotReach(f"{path} is not a socket")
            case errno.ECONNREFUSED:
                return CannotReach(f"nobody listens on {path}: bloomd is not running")
            case errno.EACCES | errno.EPERM:
                return NotPermitted(f"permission denied for {path}: {_who_may(path)}")
            case _:
                return CannotReach(f"cannot talk to the daemon at {path}: {error.strerror or error}")


def _result(message: dict[str, Any]) -> Any:
    error = message.get("error")
    if error is None:
        return message.get("result")
    if error["code"] == NOT_PERMITTED:
        raise NotPermitted(error["message"])
    if error["code"] == BUSY:
        raise CannotReach(error["message"])
    raise Failed(error["message"], error["code"])


def _who_may(path: str) -> str:
    import grp

    try:
        group = grp.getgrgid(os.stat(path).st_gid).gr_name
    except (OSError, KeyError):
        group = ""
    # With one of these the socket just has the group of the daemon: there is no control group, or it is not in it.
    who = "control group (control.group)" if group in ("", "root", "nogroup", "nobody") else f"group {group}"
    return f"members of the {who} and root may use it"
