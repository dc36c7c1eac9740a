import grp
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from control_daemon import Daemon

from bloomd.control.client import CannotReach, Client, Failed, NotPermitted
from bloomd.control.codes import METHOD_NOT_FOUND
from bloomd.control.listener import bind, unbind
from bloomd.control.server import MAX_CLIENTS

GROUP = next(group.gr_name for group in grp.getgrall() if group.gr_name not in ("root", "nogroup", "nobody"))


async def in_thread(path: str, use: Any, timeout: float = 10.0) -> Any:
    def talk() -> Any:
        with Client(path, timeout) as client:
            return use(client)

    return await trio.to_thread.run_sync(talk)


async def test_calls_of_one_connection(daemon: Daemon) -> None:
    def use(client: Client) -> list[Any]:
        return [client.call("restart", name="http"), client.call("large", count=300_000), client.call("ping")["pong"]]

    assert await in_thread(daemon.path, use) == [["http"], "x" * 300_000, True]


async def test_notifications_come_until_the_call_ends(daemon: Daemon) -> None:
    heard = await in_thread(daemon.path, lambda client: list(client.notifications("events", count=3, size=1)))
    assert heard == [("event", {"number": number, "text": "x"}) for number in range(3)]
    assert await in_thread(daemon.path, lambda client: client.call("events", count=3)) == "end"


async def test_an_error_has_its_code(daemon: Daemon) -> None:
    with pytest.raises(Failed, match="there is no method 'pnig'") as failed:
        await in_thread(daemon.path, lambda client: client.call("pnig"))
    assert failed.value.code == METHOD_NOT_FOUND


async def test_a_daemon_that_does_not_answer(daemon: Daemon) -> None:
    with pytest.raises(CannotReach, match=r"did not answer within 0\.05 seconds"):
        await in_thread(daemon.path, lambda client: client.call("hang"), timeout=0.05)


async def test_a_daemon_with_too_many_clients(daemon: Daemon) -> None:
    talkers = [await daemon.connect() for _ in range(MAX_CLIENTS)]
    for talker in talkers:
        await talker.ask("ping")
    with pytest.raises(CannotReach, match="busy: 64 clients"):
        await in_thread(daemon.path, lambda client: client.call("ping"))
    for talker in talkers:
        await talker.stream.aclose()


def test_no_socket(path: str) -> None:
    with pytest.raises(CannotReach, match=f"there is no socket {path}: is bloomd running"):
        Client(path)


def test_nobody_listens(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(path)
    with pytest.raises(CannotReach, match="bloomd is not running"):
        Client(path)


def test_no_socket_but_something_else(directory: Path) -> None:
    file = directory / "file"
    file.touch()
    for path in (directory, file):
        with pytest.raises(CannotReach, match=f"{path} is not a socket"):
            Client(str(path))


@contextmanager
def peer_that_answers(path: str, answer: bytes) -> Iterator[None]:
    """One that sends this to its only client and hangs up, whatever it is asked."""

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        thread = threading.Thread(target=partial(serve, listening))
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "closed the connection|Connection reset"),
        (b'{"jsonrpc":"2.0"', "closed the connection|Connection reset"),
        (b"220 smtp.example.org\r\n", "is not bloomd"),
        (b"\xff\n", "is not bloomd"),
        (b"[1]\n", "is not bloomd"),
        (b'{"hello":1}\n', "is not bloomd"),
    ],
)
def test_a_peer_that_is_no_bloomd(path: str, answer: bytes, words: str) -> None:
    with peer_that_answers(path, answer), Client(path) as client, pytest.raises(CannotReach, match=words):
        client.call("ping")


def test_a_refusal_that_comes_before_the_question_is_read(path: str) -> None:
    refusal = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"not you"}}\n'
    with peer_that_answers(path, refusal), pytest.raises(NotPermitted, match="not you"), Client(path) as client:
        client.call("ping", padding="x" * 1_000_000)


# Becomes somebody else only when everything is imported: others may not be able to read the interpreter.
CONNECT = """
import grp, os, sys
from bloomd.control.client import Client, NotPermitted
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    Client(sys.argv[1])
except NotPermitted as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("group", "who"),
    [(GROUP, f"the group {GROUP}"), ("root", "the control group (control.group)")],
)
def test_who_may_not_open_the_socket_is_told_who_may(path: str, group: str, who: str) -> None:
    listener = bind(path, group)
    done = subprocess.run([sys.executable, "-c", CONNECT, path], capture_output=True, text=True, check=True)
    unbind(listener)
    assert done.stdout == f"permission denied for {path}: members of {who} and root may use it\n"
