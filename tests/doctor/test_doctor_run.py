"""The doctor as a whole: without a daemon, when everything hangs, as a command; and what it does not do."""

import json
import os
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from bloomd_process import BIN
from peers import MembridgePeer, serving
from servers import free_port
from site_to_examine import MEMBRIDGE_KEY, Site, complaints

from bloomd import __version__, cli
from bloomd.control.client import NotPermitted
from bloomd.control.layout import Look
from bloomd.doctor import Finding, case, checks, fact, files, front, gather, peers, proxy, report
from bloomd.doctor.case import Case
from bloomd.doctor.finding import State
from bloomd.doctor.gather import gathered
from bloomd.errors import Unavailable


async def test_without_a_daemon(site: Site, tmp_path: Path) -> None:
    port = free_port()
    alone = {"control__socket": str(tmp_path / "bloomd.sock"), "http__bind": [f"127.0.0.1:{port}"]}
    found = await site.examine(site.file(**alone, http__public_url=None))
    assert complaints(found) == {"daemon.running": "warning"}
    assert str(found["daemon.running"].fix).endswith(("rc-service bloomd start", "systemctl start bloomd"))
    assert found["http.port"].found == f"port {port} can be used"
    assert found["loop.lag"].found == "no daemon answers"


@pytest.mark.parametrize("speaks", ["of something else", "as we do", "nothing"])
async def test_a_port_that_another_program_has(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speaks: str
) -> None:
    """Which answers, as the Node.js runtime does just like bloomd, or never does."""
    monkeypatch.setattr(front, "SECONDS", 1.0 if speaks == "nothing" else front.SECONDS)
    alone = {"control__socket": str(tmp_path / "bloomd.sock"), "http__public_url": None}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"of something else": site.ports["another"], "as we do": site.bloomd.port}
        port = ports.get(speaks, taken.getsockname()[1])
        found = await site.examine(site.file(**alone, http__bind=[f"127.0.0.1:{port}"]))
    assert complaints(found) == {"daemon.running": "warning", "http.port": "error"}
    assert ("another BLOOM Runtime" in found["http.port"].found) == (speaks == "as we do")
    assert f"ss -ltnp 'sport = :{port}'" in str(found["http.port"].fix)


async def test_without_nginx(site: Site) -> None:
    """Workers come to bloomd's own port then, and no proxy has to tell who they are."""
    found = await site.examine(site.file(http__public_url=f"http://localhost:{site.bloomd.port}"))
    assert complaints(found) == {}
    assert found["nginx.answers"].found == "http.public_url is bloomd's own port"
    assert found["public_url.reachable"].state == "ok"


async def test_without_a_daemon_and_with_an_address_of_another_machine(site: Site, tmp_path: Path) -> None:
    alone = {"control__socket": str(tmp_path / "bloomd.sock"), "http__public_url": None}
    found = await site.examine(site.file(**alone, http__bind=["203.0.113.7:5000"]))
    assert complaints(found) == {"daemon.running": "warning", "http.port": "error"}


async def test_a_daemon_that_may_not_be_asked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, timeout: float) -> None:
        raise NotPermitted(f"permission denied for {path}: members of the group bloomd-admin and root may use it")

    monkeypatch.setattr(case, "Client", refuse)
    found = await site.examine(site.file())
    assert complaints(found)["daemon.running"] == "warning"
    assert found["daemon.running"].fix == f"run it as root: sudo bloomd doctor -c {site.bloomd.directory}/examined.yaml"


async def test_a_daemon_of_the_release_before(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    really = Case.ask_daemon

    async def ask_daemon(looked_at: Case) -> Any:
        told: Any = await really(looked_at)
        new = ("clock_jumps", "notifications", "log_files")
        return told | {"process": {key: value for key, value in told["process"].items() if key not in new}}

    monkeypatch.setattr(Case, "ask_daemon", ask_daemon)
    found = await site.examine()
    assert complaints(found) == {}
    older = "the daemon that runs is older and does not tell that"
    assert [name for name, finding in found.items() if finding.found == older] == [
        "disk.logs", "logs.writable", "logs.rotated", "notifications", "clock.jumps"
    ]  # fmt: skip


async def test_settings_that_whoever_asks_may_not_read(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    async with gathered(site.read, config=site.file()) as looked_at:
        found = files.settings_file(looked_at)
    assert (found.state, found.fix) == ("error", "run it as root: sudo bloomd doctor")


async def test_everything_hangs(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a listener that takes connections and never says a word."""
    for module in (checks, fact, front, gather, peers, proxy):
        monkeypatch.setattr(module, "SECONDS", 0.5)
    monkeypatch.setattr(case, "ASK_SECONDS", 0.4)
    control = tmp_path / "bloomd.sock"
    with ExitStack() as stack:
        stuck = stack.enter_context(socket.socket(socket.AF_UNIX))
        stuck.bind(str(control))
        stuck.listen()
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        address, another = (f"127.0.0.1:{each.getsockname()[1]}" for each in silent)
        began = trio.current_time()
        found = await site.examine(
            site.file(
                database__url=f"postgresql://bloom@{address}/bloom",
                control__socket=str(control),
                membridge__server_url=f"http://{address}",
                membridge__serve=None,
                minio__endpoint=address,
                http__public_url=f"https://{address}",
                http__bind=[another],
            )
        )
        assert trio.current_time() - began < 5
    assert complaints(found) == {
        "postgres.reachable": "error",
        "membridge.reachable": "error",
        "minio.reachable": "error",
        "http.port": "error",
        "daemon.running": "error",
        "nginx.answers": "error",
    }


async def test_nothing_can_be_changed(site: Site) -> None:
    async with gathered(site.read, config=site.file()) as looked_at:
        with pytest.raises(Unavailable, match="read-only"):
            await looked_at.database.execute("INSERT INTO runtime_settings VALUES ('x', 'y')")


async def test_a_check_with_a_bug_leaves_the_others(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(looked_at: Case) -> None:
        raise ZeroDivisionError("with-a-secret")

    monkeypatch.setitem(checks.CHECKS["files"], "disk.logs", broken)
    found = await site.examine()
    assert complaints(found) == {"disk.logs": "error"}
    assert found["disk.logs"].found == "this check has a bug: ZeroDivisionError"


async def test_a_membridge_that_is_set_through_the_api(site: Site) -> None:
    """The doctor looks at the one that counts, and by the key that was given for it."""
    async with serving(MembridgePeer(MEMBRIDGE_KEY)) as peer:
        rows = {"membridge_server_url": peer.url, "admin_key": "another-key-of-32-characters-0123"}
        with site.changed(
            "INSERT INTO runtime_settings VALUES " + ", ".join(f"('{key}', '{value}')" for key, value in rows.items()),
            "DELETE FROM runtime_settings",
        ):
            found = await site.examine(site.file(membridge__serve=None, membridge__admin_key=None))
    assert complaints(found) == {"membridge.key": "error"}
    assert peer.requests[-1].headers["x-membridge-admin"] == rows["admin_key"]


@pytest.fixture
def doctor(site: Site, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The command; its exit code, and what it prints."""

    def run(*options: str, **settings: Any) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["doctor", "-c", str(site.file(**settings)), *options])
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().out

    return run


Doctor = Callable[..., tuple[int, str]]


def test_the_command_says_that_all_is_well(doctor: Doctor) -> None:
    assert doctor() == (0, "42 checks: 40 ok, 2 skipped; -v shows all\n")


def test_the_command_shows_a_person_what_to_do(doctor: Doctor) -> None:
    code, out = doctor(control__group="nobody-has-it")
    assert code == 1
    assert out == (
        "warning  socket.group: there is no group nobody-has-it (control.group)\n"
        "         → groupadd --system nobody-has-it, then restart bloomd\n"
        "42 checks: 1 warning, 39 ok, 2 skipped; -v shows all\n"
    )


def test_the_command_tells_programs_the_worst(doctor: Doctor) -> None:
    code, out = doctor("-o", "json", http__api_key="changeme", control__group="nobody-has-it")
    told = json.loads(out)
    assert (code, told["schema"], told["version"], told["worst"]) == (2, 1, __version__, "error")
    by_name = {each["check"]: each for each in told["checks"]}
    assert by_name["keys.weak"] == {
        "check": "keys.weak",
        "subject": "the way in",
        "state": "error",
        "found": "http.api_key is one that everybody knows",
        "fix": "openssl rand -hex 32 makes a better one: set http.api_key, and whoever uses it, then bloomd-ctl reload",
    }
    assert by_name["socket.group"]["state"] == "warning"
    assert by_name["loop.lag"]["fix"] is None


def test_the_program_itself_looks_at_an_env_file_that_it_is_told(site: Site) -> None:
    env_file = site.bloomd.directory / "runtime.env"
    file = site.file(env_file=None)
    command = [BIN / "bloomd", "doctor", "-c", file, "--env-file", env_file, "-o", "json", "-v"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    by_name = {each["check"]: each for each in json.loads(done.stdout)["checks"]}
    assert by_name["env_file.mode"]["found"] == f"only owner and group may read {env_file}"
    assert done.stderr == ""


def test_wrong_usage(doctor: Doctor) -> None:
    assert doctor("-o", "xml")[0] == 64


FINDINGS = [
    Finding("a.one", "files", "error", "it is \x1b[2Jbroken", "mend --it 'with a rather long command' " + "x" * 60),
    Finding("a.two", "files", "ok", "it is well"),
    Finding("b.one", "work", "skipped", "there is none"),
    Finding("b.two", "work", "warning", "it is not quite as it should be", "look at it"),
]


def text(**options: bool) -> list[str]:
    return list(report.text(FINDINGS, Look(0, 60), **options))


def test_the_worst_comes_last() -> None:
    assert text() == [
        "warning  b.two: it is not quite as it should be",
        "         → look at it",
        "error    a.one: it is \N{REPLACEMENT CHARACTER}[2Jbroken",
        f"         → {FINDINGS[0].fix}",  # not wrapped: it is to be copied
        "4 checks: 1 error, 1 warning, 1 ok, 1 skipped; -v shows all",
    ]


def test_everything_comes_by_subject() -> None:
    lines = text(verbose=True)
    assert [line for line in lines if not line.startswith(" ")] == [
        "files",
        "error    a.one: it is \N{REPLACEMENT CHARACTER}[2Jbroken",
        "ok       a.two: it is well",
        "work",
        "skipped  b.one: there is none",
        "warning  b.two: it is not quite as it should be",
        "4 checks: 1 error, 1 warning, 1 ok, 1 skipped",
    ]


@pytest.mark.parametrize("state", ["ok", "skipped", "warning", "error"])
def test_a_state_has_its_colour(state: State) -> None:
    finding = Finding("check", "files", state, f"the word {state} stands here, too", None)
    _, line, summary = report.text([finding], Look(0, 60, colour=True), verbose=True)
    assert line.startswith("\x1b[")
    assert line.count("\x1b[") == summary.count("\x1b[") == 2
