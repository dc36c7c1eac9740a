"""`bloomd worker` as an init system runs it: its options, its signals, its end."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from bloomd_process import BIN, KEY
from fake import FAKE
from init_system import init_system
from servers import eventually, free_port, is_running

from bloomd.settings import SettingsError, load
from bloomd.worker.contexts import name_of

# A watchdog, and with it how often a worker tells what it does.
WATCHED = {"WATCHDOG_USEC": "400000"}


class Command:
    """One `bloomd worker`."""

    def __init__(
        self, directory: Path, url: str, *arguments: str, token: str = KEY, environ: dict[str, str] | None = None
    ) -> None:
        self.root, self.log = directory / "root", directory / "log"
        self.hanging = self.root / "contexts" / name_of("c") / "hanging"
        (directory / "token").write_text(token)
        (directory / "config.yaml").write_text(json.dumps({"worker": {"command": list(FAKE), "token_file": "token"}}))
        options = ["--server", url, "--name", "w1", "--root", str(self.root), "-c", str(directory / "config.yaml")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "bloomd", "worker", *options, *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **(environ or {})}, cwd=directory,
            )  # fmt: skip

    def hangs(self) -> int:
        """The process that hangs, as soon as it does."""
        eventually(lambda: self.hanging.exists() and self.hanging.read_text())
        return int(self.hanging.read_text())


@pytest.fixture
def command(tmp_path: Path, daemon) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(*arguments: str, **more: Any) -> Command:
        started.append(Command(tmp_path, daemon.url, *arguments, **more))
        return started[-1]

    yield start
    for each in started:
        while each.process.poll() is None:  # by signals that it obeys, so that it leaves nothing running
            each.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                each.process.wait(0.3)


def test_it_works_until_it_is_told_to_stop_and_ends_what_it_has_begun(command, queue):
    worker = command("--max-concurrency", "2", "--label", "gpu", "--label", "big")
    id = queue.add("fake:slow 0.5\nfake:say done", labels=["gpu", "big"])
    eventually(lambda: queue.task(id)["status"] == "running")
    worker.process.terminate()
    assert worker.process.wait(20) == 0
    assert queue.task(id)["status"] == "completed"
    told = queue.worker()
    assert told["capabilities"]["labels"] == ["gpu", "big"]
    assert told["capabilities"]["max_concurrency"] == 2
    assert told["agent_version"]
    assert told["os_info"].startswith("Linux")
    assert told["install_method"] == "foreground"
    assert told["ip_addrs"] == ["127.0.0.1"]
    assert KEY not in worker.log.read_text()


def test_a_second_signal_gives_back_what_runs(command, queue):
    worker = command()
    id = queue.add("fake:hang", context_id="c")
    pid = worker.hangs()
    worker.process.terminate()
    eventually(lambda: "stopping" in worker.log.read_text())
    time.sleep(0.2)  # one signal could swallow another one
    assert worker.process.poll() is None
    worker.process.send_signal(signal.SIGINT)
    assert worker.process.wait(20) == 0
    assert not is_running(pid)
    assert queue.task(id)["status"] == "queued"
    assert queue.task(id)["attempts"] == 0


def test_a_worker_that_was_killed_leaves_nothing_running_and_its_task_to_the_next_one(command, queue):
    first = command()
    id = queue.add("fake:fork-away\nfake:hang", context_id="c", max_attempts=2)
    pids = [first.hangs(), int((first.hanging.parent / "child").read_text())]
    assert all(map(is_running, pids))
    first.process.kill()
    first.process.wait()
    eventually(lambda: not any(map(is_running, pids)))
    first.hanging.unlink()
    second = command()
    assert second.hangs() not in pids
    assert queue.task(id)["attempts"] == 1


def test_a_wrong_token_is_said_and_not_shown(command):
    worker = command(token="a-wrong-token-of-somebody")
    assert worker.process.wait(20) == 78
    assert "refuses this worker" in worker.log.read_text()
    assert "a-wrong-token" not in worker.log.read_text()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("server", "ftp://x", "expected a URL that begins with http:// or https://"),
        ("max_concurrency", 33, "expected a whole number from 1 to 32"),
        ("name", "a/b", "expected a name of 1 to 128 characters"),
        ("token", "schlüssel", "expected a key of printable ASCII characters"),
        ("token_file", "nowhere", "there is no such file"),
    ],
)
def test_what_is_wrong_with_an_option_is_said(key, value, words):
    with pytest.raises(SettingsError) as raised:
        load(None, environ={}, options={f"worker.{key}": value})
    assert f"`worker.{key}`: " in str(raised.value)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({}, "no server is set: say --server URL"), ({"server": "http://x", "command": ["no-such-cli"]}, "`no-such-cli`")],
)
def test_what_is_missing_is_said(tmp_path, settings, words):
    (tmp_path / "config.yaml").write_text(json.dumps({"worker": settings}))
    done = subprocess.run(
        [BIN / "bloomd", "worker", "-c", tmp_path / "config.yaml", "--root", tmp_path / "root"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 78
    assert words in done.stderr
    assert not (tmp_path / "root").exists()


def test_the_url_of_the_server_has_no_slash_at_its_end():
    loaded = load(None, environ={}, options={"worker.server": "https://bloom.example.org/base/"})
    assert loaded.settings.worker.server == "https://bloom.example.org/base"


def test_it_is_ready_when_it_is_registered_and_tells_what_it_does(command, queue, tmp_path):
    with init_system(str(tmp_path / "notify")) as init:
        worker = command(environ=init.environ | WATCHED)
        assert init.hears() == {"READY": "1", "STATUS": "claiming, 0 of 1 at work"}
        assert queue.worker()["status"] == "online"
        id = queue.add("fake:env")
        eventually(lambda: queue.task(id)["status"] == "completed")
        assert not (init.environ | WATCHED).keys() & json.loads(queue.content(id))["environ"].keys()
        queue.add("fake:hang", context_id="c")
        worker.hangs()
        eventually(lambda: init.hears().get("STATUS") == "claiming, 1 of 1 at work")
        worker.process.terminate()
        assert init.hears_of("STOPPING") == {"STOPPING": "1"}
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(20) == 0


def test_a_server_that_is_away_is_no_reason_not_to_be_ready(command, tmp_path):
    with init_system(str(tmp_path / "notify")) as init:
        command("--server", f"http://127.0.0.1:{free_port()}", environ=init.environ)
        assert init.hears() == {"READY": "1", "STATUS": "waiting for the server, 0 of 1 at work"}
