import grp
import json
import os
import pwd
import socket
import sys
from typing import Any

import pytest
import trio
from control_daemon import serving

from bloomd.control import peer as peer_module
from bloomd.control.codes import NOT_PERMITTED
from bloomd.control.peer import Peer, may_command, peer_of

# Becomes somebody else only when everything is imported: others may not be able to read the interpreter.
ASK = """
import json, os, socket, sys
path, request, uid, gid, groups = map(json.loads, sys.argv[1:])
os.setgroups(groups)
os.setgid(gid)
os.setuid(uid)
connection = socket.socket(socket.AF_UNIX)
connection.connect(path)
connection.sendall(json.dumps(request).encode() + b"\\n")
print(connection.makefile().readline())
"""

STRANGER = 65534
GROUP = next((group for group in grp.getgrall() if group.gr_gid not in (0, STRANGER)), None)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def me() -> Peer:
    return Peer(os.getpid(), os.geteuid(), os.getegid(), frozenset(os.getgroups()))


def test_a_peer_is_who_the_kernel_says() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_of(ours) == me()
        assert peer_of(ours).user == pwd.getpwuid(os.geteuid()).pw_name


def test_without_groups_from_the_kernel_the_group_database_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "SO_PEERGROUPS", 9999)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        name = pwd.getpwuid(os.geteuid()).pw_name
        assert peer_of(ours).groups == frozenset(os.getgrouplist(name, os.getegid()))


def test_a_user_without_a_name_has_a_number() -> None:
    assert Peer(1, 3_999_999_999, 1, frozenset()).user == "uid 3999999999"


@pytest.mark.parametrize(
    ("peer", "may"),
    [
        (Peer(1, 0, 0, frozenset()), True),
        (Peer(1, 777, 7, frozenset()), True),
        (Peer(1, 4242, 4242, frozenset()), False),
        (Peer(1, 4242, 4242, frozenset({0, 4243})), False),
    ],
)
def test_root_and_the_daemons_own_user_may_command(peer: Peer, may: bool) -> None:
    assert may_command(peer, "no-such-group", 777) is may


def test_members_may_command_by_primary_or_supplementary_group() -> None:
    assert GROUP is not None
    assert may_command(Peer(1, 4242, GROUP.gr_gid, frozenset()), GROUP.gr_name, 777)
    assert may_command(Peer(1, 4242, 4242, frozenset({4243, GROUP.gr_gid})), GROUP.gr_name, 777)
    assert not may_command(Peer(1, 4242, 4242, frozenset({4243})), GROUP.gr_name, 777)


async def ask_as(path: str, method: str, *, uid: int, gid: int = STRANGER, groups: tuple[int, ...] = ()) -> Any:
    request = {"jsonrpc": "2.0", "id": 1, "method": method}
    arguments = [json.dumps(argument) for argument in (path, request, uid, gid, groups)]
    done = await trio.run_process([sys.executable, "-c", ASK, *arguments], capture_stdout=True)
    return json.loads(done.stdout)


@as_root
async def test_a_stranger_may_ping_and_no_more(path: str) -> None:
    async with serving(path) as daemon:
        os.chmod(path, 0o666)
        answer = await ask_as(path, "ping", uid=STRANGER)
        stranger = answer["result"]["user"]
        for method in ("status", "hang"):
            error = (await ask_as(path, method, uid=STRANGER))["error"]
            assert error == {
                "code": NOT_PERMITTED,
                "message": f"{stranger} may not call {method};"
                " members of the group no-such-group, bloomd's own user and root may",
            }
        assert [entry[:2] for entry in daemon.audited] == [(stranger, "hang")]  # the refused attempt


@as_root
async def test_members_and_the_daemons_own_user_may_everything(path: str) -> None:
    assert GROUP is not None
    async with serving(path, group=GROUP.gr_name, own_uid=4242):
        os.chmod(path, 0o666)
        assert "result" in await ask_as(path, "status", uid=STRANGER, groups=(4243, GROUP.gr_gid))
        assert "result" in await ask_as(path, "status", uid=STRANGER, gid=GROUP.gr_gid)
        assert "result" in await ask_as(path, "status", uid=4242)
        assert "error" in await ask_as(path, "status", uid=STRANGER, groups=(4243,))


@as_root
async def test_somebody_in_more_groups_than_fit_is_known_by_the_group_database(path: str) -> None:
    assert GROUP is not None
    async with serving(path, group=GROUP.gr_name):
        os.chmod(path, 0o666)
        many = (*range(5000, 5300), GROUP.gr_gid)
        assert "error" in await ask_as(path, "status", uid=STRANGER, groups=many)  # the database knows no such thing
        assert "result" in await ask_as(path, "status", uid=STRANGER, gid=GROUP.gr_gid, groups=many)
