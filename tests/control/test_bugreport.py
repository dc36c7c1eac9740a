"""`bloomd-ctl bugreport`: how the archive is put together when all goes well, and what it says when not."""

import json
import os
import resource
import stat
import sys
import tarfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from bloomd import ctl
from bloomd.control import bugreport
from bloomd.control.bugreport import CannotWrite
from bloomd.control.client import CannotReach, Failed, NotPermitted
from bloomd.redaction import Redaction

SECRET = "a-secret-that-the-daemon-knows"
UNKNOWN = "a-secret-that-nobody-knows"
FINDINGS = {"schema": 1, "worst": "warning", "checks": [{"check": "disk.data", "found": f"full of {SECRET}"}]}


class FakeDaemon:
    """What `Client` is to a daemon, and what that answers. An exception is raised in the place of an answer."""

    def __init__(self) -> None:
        self.redaction = Redaction()
        self.redaction.add([SECRET])
        self.told: Any = {
            "node": "alpha/../1 ",
            "at": 1_700_000_000.0,
            "config": "/dev/null",
            "env_file": None,
            "versions": {"python": "3.11.7"},
            "status": {"verdict": "ok"},
            "settings": {"settings": [], "warnings": []},
            "limits": ["Max open files 1024"],
        }
        self.lines: Any = [["line 1", "line 2"], ["läuft"]]
        self.redacts: Any = None

    def __call__(self, seconds: float) -> "FakeDaemon":
        assert seconds > 0
        return self

    def __enter__(self) -> "FakeDaemon":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, method: str, **params: Any) -> Any:
        if method == "log.redact":
            return _answer(self.redacts) or self.redaction.within(params["value"], 1000)
        assert method == "bugreport"
        return _answer(self.told)

    def notifications(self, method: str, **params: Any) -> Any:
        assert method == "log.recent"
        yield "alive", {"id": "x"}
        for lines in _answer(self.lines):
            yield "lines", {"id": "x", "lines": lines}


def _answer(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


def away(seconds: float) -> Any:
    raise CannotReach("nobody listens on /run/bloomd/bloomd.sock: bloomd is not running")


@pytest.fixture
def daemon() -> FakeDaemon:
    return FakeDaemon()


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Make `bloomd` say something; it stands beside the `bloomd-ctl` that is run, and writes down its arguments."""
    (tmp_path / "bin").mkdir()
    path = tmp_path / "bin/bloomd"
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bin/bloomd-ctl")])
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    def make(script: str) -> Path:
        path.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\n{script}\n')
        path.chmod(0o755)
        return tmp_path / "asked"

    make(f"echo '{json.dumps(FINDINGS)}'; exit 1")
    return make


@pytest.fixture(autouse=True)
def directories(tmp_path, monkeypatch):
    """Where it is run, and where the log files are: none of this machine's."""
    for name in ("here", "logs"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(bugreport, "LOG_DIRECTORY", str(tmp_path / "logs"))


def run(connect: Any, *, file: str | None = "report.tar.gz", config: str | None = None, output: str = "text") -> int:
    return bugreport.bugreport(Namespace(file=file, config=config, output=output), connect)


def files(path: str = "report.tar.gz") -> dict[str, Any]:
    """The files of the archive, those of JSON as values."""
    with tarfile.open(path) as archive:
        found = {member.name.partition("/")[2]: archive.extractfile(member).read().decode() for member in archive}
    return {name: json.loads(text) if name.endswith(".json") else text for name, text in found.items()}


def missing(path: str = "report.tar.gz") -> dict[str, str]:
    return {each["what"]: each["why"] for each in files(path)["manifest.json"]["missing"]}


def test_all_there_is(daemon, program, capsys):
    assert run(daemon) == 0
    found = files()
    assert list(found) == [
        "README.txt", "manifest.json", "versions.json", "status.json", "settings.json", "limits.txt", "log.txt",
        "machine.json", "doctor.json",
    ]  # fmt: skip
    assert found["status.json"] == {"verdict": "ok"}
    assert found["log.txt"] == "line 1\nline 2\nläuft\n"
    assert found["doctor.json"]["exit_code"] == 1
    assert found["doctor.json"]["said"]["checks"][0] == {"check": "disk.data", "found": "full of ****"}
    assert found["machine.json"]["installed"]["bloomd"]
    manifest = found["manifest.json"]
    sizes = {each["name"]: each["bytes"] for each in manifest["files"]}
    assert (sizes["log.txt"], sizes["limits.txt"]) == (len("line 1\nline 2\nläuft\n".encode()), 20)
    assert all(each["holds"] for each in manifest["files"])
    assert manifest["missing"] == []
    assert "the daemon" in manifest["redacted_by"]
    said = capsys.readouterr().out
    assert said.startswith(f"{os.getcwd()}/report.tar.gz: {os.path.getsize('report.tar.gz')} bytes")
    assert "look at it before you send it" in said
    assert "by their form only" not in said


def test_only_its_user_can_read_it(daemon, program):
    before = os.umask(0)
    try:
        run(daemon)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat("report.tar.gz").st_mode) == 0o600
    with tarfile.open("report.tar.gz") as archive:
        assert {member.mode for member in archive} == {0o600}
        assert {member.uid for member in archive} == {0}


def test_the_doctor_is_told_which_configuration_the_daemon_has(daemon, program, tmp_path):
    asked = program("echo '{}'")
    daemon.told["config"] = config = str(tmp_path / "here.yaml")
    Path(config).touch()
    run(daemon, file="a")
    assert asked.read_text() == f"doctor -o json -c {config}\n"
    daemon.told["env_file"] = env_file = str(tmp_path / "here.env")
    Path(env_file).touch()
    run(daemon, file="b")
    del daemon.told["env_file"]  # by a daemon from before an upgrade
    run(daemon, file="c", config="other.yaml")
    assert asked.read_text().splitlines()[1:] == [
        f"doctor -o json -c {config} --env-file {env_file}",
        "doctor -o json -c other.yaml",
    ]


def test_the_doctor_does_not_look_for_a_daemon_that_has_no_file(daemon, program):
    asked = program("echo '{}'")
    daemon.told["config"] = None
    run(daemon)
    assert list(missing()) == ["doctor"]
    assert "no configuration file" in missing()["doctor"]
    assert not asked.exists()


def test_the_daemon_cannot_have_just_any_file_read(daemon, program, tmp_path, monkeypatch):
    """One who has taken over the daemon's user would like to have root read something for him."""
    asked = program("echo '{}'")
    daemon.told["config"] = config = str(tmp_path / "here.yaml")
    run(daemon, file="a")
    assert missing("a") == {config: "No such file or directory; the doctor looks at the usual configuration"}
    Path(config).touch()
    if os.geteuid() == 0:
        os.chown(config, 12346, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    run(daemon, file="b")
    assert f"say -c {config}" in missing("b")[config]
    assert asked.read_text().splitlines() == ["doctor -o json"] * 2


def test_nor_just_any_environment(daemon, program, tmp_path, monkeypatch):
    asked = program("echo '{}'")
    daemon.told["env_file"] = env_file = str(tmp_path / "here.env")
    run(daemon, file="a")
    assert missing("a") == {}  # it need not be there
    Path(env_file).touch()
    if os.geteuid() == 0:
        os.chown(env_file, 12346, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    run(daemon, file="b")
    assert missing("b") == {env_file: "neither root nor you own it, so the doctor looks without it"}
    assert asked.read_text().splitlines() == ["doctor -o json -c /dev/null"] * 2


def test_its_usual_name_has_node_and_time(daemon, program, capsys, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_764_122_400.0)
    assert run(daemon, file=None) == 0
    [path] = os.listdir()
    assert path == "bloomd-bugreport-alpha_.._1_-20251126T020000Z.tar.gz"
    with tarfile.open(path) as archive:
        assert {member.name.partition("/")[0] for member in archive} == {path.removesuffix(".tar.gz")}
    with pytest.raises(CannotWrite, match="is there already"):
        run(daemon, file=None)


@pytest.mark.parametrize("there", ["file", "directory", "dangling link"])
def test_nothing_is_overwritten(daemon, program, tmp_path, there):
    match there:
        case "file":
            Path("report.tar.gz").write_text("precious")
        case "directory":
            Path("report.tar.gz").mkdir()
        case _:
            Path("report.tar.gz").symlink_to(tmp_path / "elsewhere")
    asked = program("echo '{}'")
    with pytest.raises(CannotWrite, match=r"report\.tar\.gz is there already"):
        run(daemon)
    assert not asked.exists()  # it does not take a minute to find that out
    assert not (tmp_path / "elsewhere").exists()
    if there == "file":
        assert Path("report.tar.gz").read_text() == "precious"


def test_one_that_came_meanwhile_is_not_overwritten_either(daemon, program):
    program("echo precious >report.tar.gz; echo '{}'")
    with pytest.raises(CannotWrite, match=r"report\.tar\.gz is there already"):
        run(daemon)
    assert Path("report.tar.gz").read_text() == "precious\n"


def test_where_nothing_can_be_written(daemon, program):
    with pytest.raises(CannotWrite, match=r"cannot make .*/no/such\.tar\.gz: No such file or directory"):
        run(daemon, file="no/such.tar.gz")


def test_a_full_disk_leaves_no_half_of_it(daemon, program):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(CannotWrite, match=r"cannot write .*/report\.tar\.gz: File too large"):
            run(daemon)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir() == []


def test_who_may_not_ask_gets_nothing(daemon, program):
    daemon.told = NotPermitted("nobody may not call bugreport")
    with pytest.raises(NotPermitted):
        run(daemon)
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (
            "echo usage >&2; echo 'bloomd: there is no doctor' >&2; exit 64",
            "it ended with 64: bloomd: there is no doctor",
        ),
        (f"echo 'postgresql://u:{UNKNOWN}@h/d' >&2; exit 70", "it ended with 70: postgresql://u:****@h/d"),
        ("echo 'not JSON'", "it ended with 0: "),
        ("exit 0", "it ended with 0: "),
    ],
)
def test_a_doctor_that_fails_is_missing(daemon, program, capsys, script, why):
    program(script)
    assert run(daemon) == 0
    assert missing() == {"doctor": why}
    assert f"missing: doctor: {why}".strip() in capsys.readouterr().out
    assert UNKNOWN not in str(files())
    assert "doctor.json" not in files()


def test_a_doctor_that_takes_too_long_is_missing(daemon, program, monkeypatch):
    monkeypatch.setattr(bugreport, "DOCTOR_SECONDS", 0.2)
    program("exec sleep 60")
    began = time.monotonic()
    run(daemon)
    assert time.monotonic() - began < 20
    assert missing() == {"doctor": "it was not done after 0.2 seconds"}


def test_without_a_doctor_beside_it(daemon, program, tmp_path):
    (tmp_path / "bin/bloomd").unlink()
    run(daemon)
    assert missing() == {"doctor": "there is no program bloomd beside this bloomd-ctl"}
    program("echo '{}'")
    (tmp_path / "link").symlink_to(tmp_path / "bin/bloomd-ctl")
    sys.argv[0] = str(tmp_path / "link")
    run(daemon, file="linked")
    assert missing("linked") == {}


def test_a_daemon_that_goes_away_meanwhile(daemon, program, capsys):
    daemon.lines = CannotReach("it closed the connection")
    daemon.redacts = CannotReach("there is no socket")
    run(daemon)
    assert "by their form only" in capsys.readouterr().out
    found = files()
    assert missing() == {"latest lines of the log in the daemon's memory": "it closed the connection"}
    assert found["status.json"] == {"verdict": "ok"}
    assert "by the form of secrets only, since there is no socket" in found["manifest.json"]["redacted_by"]


def test_a_daemon_that_is_older_than_this_program(daemon, program):
    daemon.told = Failed("there is no method 'bugreport'", -32601)
    assert run(daemon) == 0
    assert missing()["status"] == "there is no method 'bugreport'"


def test_without_a_daemon(program, tmp_path, capsys):
    program(
        f"""case $1 in
        doctor) echo '{{"found": "X-Api-Key: {UNKNOWN}"}}'; exit 2;;
        check) echo 'membridge.admin_key       abcd****wxyz  # file (/etc/bloomd/bloomd.yaml:3)'
               echo 'minio.access_key          some-user  # file'
               echo 'minio.secret_key          ****  # file'
               echo '/etc/bloomd/bloomd.yaml:3:1: unknown key' >&2;;
        esac"""
    )
    (tmp_path / "logs/bloomd.log").write_bytes(b"x" * bugreport.TAIL_BYTES + b"\nlast words \xff\n")
    (tmp_path / "logs/bloomd-error.log").write_text(f"Authorization: Bearer {UNKNOWN}\n")
    (tmp_path / "logs/other").write_text("not a log")
    assert run(away, config="here.yaml", output="json") == 0
    found = files()
    assert json.loads(capsys.readouterr().out) == {
        "file": f"{os.getcwd()}/report.tar.gz",
        "bytes": os.path.getsize("report.tar.gz"),
        "files": [name for name in found if name not in ("README.txt", "manifest.json")],
        "missing": missing(),
    }
    assert set(missing().values()) == {"nobody listens on /run/bloomd/bloomd.sock: bloomd is not running"}
    assert set(found) >= {"machine.json", "doctor.json", "settings.txt", "log/bloomd.log", "log/bloomd-error.log"}
    assert "log/other" not in found
    assert UNKNOWN not in str(found)
    assert found["doctor.json"]["said"] == {"found": "X-Api-Key: ****"}
    assert [line.split()[1] for line in found["settings.txt"].splitlines()[:3]] == ["****"] * 3
    assert "unknown key" in found["settings.txt"]
    assert found["log/bloomd.log"].endswith("x\nlast words \N{REPLACEMENT CHARACTER}\n")
    assert len(found["log/bloomd.log"]) == bugreport.TAIL_BYTES
    assert "by the form of secrets only" in found["manifest.json"]["redacted_by"]


def test_the_command_line():
    options = ctl._parser().parse_args(["bugreport"])
    assert (options.file, options.config, options.output) == (None, None, "text")
    options = ctl._parser().parse_args(["-s", "a.sock", "-o", "json", "bugreport", "-o", "x.tar.gz", "-c", "b.yaml"])
    assert (options.socket, options.output, options.file, options.config) == ("a.sock", "json", "x.tar.gz", "b.yaml")
    options = ctl._parser().parse_args(["bugreport", "-s", "a.sock"])
    assert options.socket == "a.sock"
