"""What an init system is told of a daemon, over a real socket; and what it is not told."""

import fcntl
import os
import re
import signal
import socket
import time
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from bloomd_process import Bloomd
from init_system import init_system
from servers import eventually

from bloomd.notify import SEND_SECONDS, Notifier

OK, NOT_OK = r"ok", r"(degraded|down): bloomd-ctl status says why"


def answers(daemon: Bloomd) -> bool:
    try:
        return daemon.http.get("/api/runtime/health").status_code == 200
    except httpx.TransportError:
        return False


def microseconds() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_it_tells_from_the_start_to_the_end(bloomd):
    with init_system(f"@bloomd-{uuid4()}") as init:
        daemon = bloomd(environ=init.environ)
        daemon.start(ready=False)
        told = init.hears()
        assert told.keys() == {"READY", "STATUS"}  # it is not watched, and says nothing before
        assert re.fullmatch(f"{OK}|{NOT_OK}", told["STATUS"])
        assert daemon.is_ready()

        for settings in ({"log__level": "debug"}, {"http__bind": "nonsense"}):  # one is brought into force, one is not
            daemon.configure(**settings)
            before = microseconds()
            daemon.ctl("reload")
            told = init.hears_of("RELOADING")
            assert before <= int(told["MONOTONIC_USEC"]) <= microseconds()
            assert init.hears_of("READY") == {"READY": "1"}

        assert daemon.stop() == 0
        assert init.hears_of("STOPPING") == {"STOPPING": "1"}
        assert init.has_heard_nothing()


def test_it_is_ready_once_every_service_has_begun_or_has_said_why_not(bloomd, tmp_path):
    """A database that is away is no reason not to be: the daemon answers, and waits for it. Nobody restarts it."""
    with init_system(str(tmp_path / "notify")) as init, socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://bloom@127.0.0.1:{silent.getsockname()[1]}/x"
        daemon = bloomd(url, migrate=False, environ=init.environ, database__connect_timeout=60)
        daemon.start(ready=False)
        eventually(lambda: '"starting"' in daemon.ctl("-o", "json", "status").stdout and answers(daemon))
        assert daemon.ctl("reload").returncode == 0
        assert init.has_heard_nothing()
        silent.close()
        told = init.hears()
        assert told["READY"] == "1"
        assert re.fullmatch(NOT_OK, told["STATUS"])  # and no word about the database: everybody can read this


def test_the_watchdog_hears_nothing_of_a_daemon_whose_loop_stands_still(bloomd, tmp_path):
    interval = 0.2
    watched = {"WATCHDOG_USEC": str(int(2 * interval * 1e6))}
    with init_system(str(tmp_path / "notify")) as init:
        daemon = bloomd(environ=init.environ | watched)
        daemon.start(ready=False)
        init.hears_of("READY")
        for _ in range(3):
            assert init.hears_of("WATCHDOG")
        # A listening socket is made in the loop, under a lock on its directory: who has that lock, has the loop.
        lock = os.open(tmp_path, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        daemon.configure(http__bind=[f"127.0.0.1:{daemon.port}", f"unix:{tmp_path}/http.sock"])
        daemon.signal(signal.SIGHUP)
        init.hears_of("RELOADING")
        eventually(lambda: init.hears_nothing_for(5 * interval))
        os.close(lock)
        init.hears_of("READY")
        assert init.hears_of("WATCHDOG")
        daemon.ctl("stop", "database")
        eventually(lambda: re.fullmatch(r"down: .*", init.hears().get("STATUS", "")))


def test_its_children_cannot_speak_for_it(tmp_path):
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    Notifier(environ)
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize("of", [{}, {"WATCHDOG_PID": "1"}], ids=["nobody", "somebody else"])
async def test_only_who_is_watched_says_that_it_is_alive(tmp_path, nursery, autojump_clock, of):
    with init_system(str(tmp_path / "notify")) as init:
        usec = {"WATCHDOG_USEC": "30000000"} if of else {}
        notifier = Notifier(init.environ | usec | of)
        notifier.ready("well")
        words = iter(["well", "ill"])
        with pytest.raises(RuntimeError):  # there are no more words
            await notifier.keep_telling(lambda: next(words))
        assert init.hears(0) == {"READY": "1", "STATUS": "well"}
        assert [init.hears(0), init.hears(0)] == [{"STATUS": "well"}, {"STATUS": "ill"}]
        assert init.has_heard_nothing()


async def test_without_an_init_system_nothing_is_told():
    notifier = Notifier({"WATCHDOG_USEC": "30000000"})
    notifier.ready("")
    with notifier.reloading():
        pass
    await notifier.keep_telling(lambda: "")  # ends at once
    notifier.stopping()


def test_an_init_system_that_does_not_hear_costs_little(tmp_path, capsys):
    with init_system(str(tmp_path / "notify")) as init:
        notifier = Notifier(init.environ)
        began = time.monotonic()
        for _ in range(int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 2):
            notifier.ready("")
        assert SEND_SECONDS <= time.monotonic() - began < 20
    notifier.stopping()
    assert "could not be told" in capsys.readouterr().out
