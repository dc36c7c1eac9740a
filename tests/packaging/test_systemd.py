"""systemd/: the units, read by systemd's own programs, and held against the daemon, OpenRC's script and each other."""

import re
import subprocess
from pathlib import Path

import pytest
from bloomd_process import BIN
from tools import require

from bloomd import cli, ctl
from bloomd.settings.model import Control, Http, Worker
from bloomd.supervisor.trouble import CRASH_BUDGET, CRASH_WINDOW

ROOT = Path(__file__).parents[2]
UNITS = {name: (ROOT / "systemd" / f"{name}.service").read_text() for name in ("bloomd", "bloomd-worker")}
OPENRC = (ROOT / "openrc" / "bloomd").read_text()

# Of the Node.js runtime.
ENV_FILE = Path("/etc/bloom-runtime.env")

# Tenths of what `systemd-analyze security` of systemd 252 says.
EXPOSURE = {"bloomd": 14, "bloomd-worker": 24}


def settings(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNITS[unit], re.MULTILINE)


def setting(unit: str, name: str) -> str:
    [value] = settings(unit, name)
    return value


def run(*command: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_understands_every_line(tmp_path, unit):
    """As it is after an installation: systemd-analyze looks for the programs, too."""
    file = tmp_path / f"{unit}.service"
    file.write_text(UNITS[unit].replace("/usr/bin/bloomd", str(BIN / "bloomd")))
    done = run(require("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no", file)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", UNITS)
def test_it_is_no_more_exposed_than_it_was(unit):
    done = run(
        require("systemd-analyze"), "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE[unit]}",
        ROOT / "systemd" / f"{unit}.service",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_programs_take_the_arguments_they_are_started_with():
    def parsed(command: str) -> list[object]:
        options = cli._parser().parse_args(command.removeprefix("/usr/bin/bloomd ").split())
        return [options.command, options.config, options.env_file]

    check, reload = settings("bloomd", "ExecReload")
    assert parsed(setting("bloomd", "ExecStart")) == [cli._run, cli.DEFAULT_FILE, ENV_FILE]
    assert parsed(check) == [cli._check, cli.DEFAULT_FILE, ENV_FILE]
    options = ctl._parser().parse_args(reload.removeprefix("/usr/bin/bloomd-ctl ").split())
    assert (options.method, options.socket or ctl.DEFAULT_SOCKET) == ("reload", Control().socket)
    worker = cli._parser().parse_args(setting("bloomd-worker", "ExecStart").removeprefix("/usr/bin/bloomd ").split())
    assert (worker.command, worker.config) == (cli._worker, Path("/etc/bloomd-worker/worker.yaml"))


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_gives_up_when_the_supervisor_of_the_daemon_would(unit):
    assert int(setting(unit, "StartLimitBurst")) == CRASH_BUDGET
    assert int(setting(unit, "StartLimitIntervalSec")) == CRASH_WINDOW
    assert setting(unit, "RestartPreventExitStatus") == f"{cli.USAGE} {cli.BAD_CONFIGURATION}"


@pytest.mark.parametrize(
    ("unit", "values"),
    [
        (
            "bloomd",
            {
                "After": "network-online.target postgresql.service",
                "Wants": "network-online.target",
                "Type": "notify",
                "User": "bloomd",
                "Restart": "on-failure",
                "RestartSec": "1",
                "WatchdogSec": "30",
                "LimitCORE": "0",
                "WantedBy": "multi-user.target",
            },
        ),
        (
            "bloomd-worker",
            {
                "After": "network-online.target bloomd.service",
                "Wants": "network-online.target",
                "Type": "notify",
                "User": "bloomd-worker",
                "Restart": "on-failure",
                "RestartSec": "5",
                "KillMode": "mixed",
                "OOMPolicy": "continue",
                "WatchdogSec": "60",
                "LimitCORE": "0",
                "WantedBy": "multi-user.target",
            },
        ),
    ],
)
def test_how_it_is_started_watched_and_started_again(unit, values):
    assert {name: setting(unit, name) for name in values} == values


def test_a_stop_waits_longer_than_what_is_under_way_may_take():
    assert int(setting("bloomd", "TimeoutStopSec")) > Http().drain_seconds
    assert int(setting("bloomd-worker", "TimeoutStopSec")) > Worker().grace_seconds


def test_the_directories_and_limits_are_those_of_openrc():
    """But for the user, who is the daemon's own there, too, and for files, as systemd has the log."""
    made = {
        path: (owner, mode)
        for owner, mode, paths in re.findall(r"checkpath --directory --owner (\S+) --mode (\d+) ([^|\n]+)", OPENRC)
        for path in paths.split()
    }
    ours = "bloomd:bloomd"
    assert made["/run/bloomd"] == (ours, setting("bloomd", "RuntimeDirectoryMode"))
    assert made["/var/lib/bloomd"] == (ours, setting("bloomd", "StateDirectoryMode"))
    assert made["/var/log/bloomd"] == (ours, setting("bloomd", "LogsDirectoryMode"))
    assert {setting("bloomd", f"{kind}Directory") for kind in ("Runtime", "State", "Logs")} == {"bloomd"}
    install = re.findall(r"^ExecStartPre=/usr/bin/install -d -m (\d+) -g (\S+) (\S+)$", UNITS["bloomd"], re.MULTILINE)
    assert install == [("0750", "bloomd-web", "/run/bloomd/http")]
    assert re.search(r"checkpath --directory --owner bloomd:bloomd-web --mode 0750 /run/bloomd/http ", OPENRC)
    assert f"rc_ulimit:=-n {setting('bloomd', 'LimitNOFILE')}}}" in OPENRC
    assert f'umask="{setting("bloomd", "UMask")}"' in OPENRC


def test_the_install_script_writes_the_same_unit():
    """The machine of a worker that was installed by it has another place for the program, and no other difference."""
    script = (ROOT / "bloomd" / "http" / "install" / "install.sh").read_text()
    [written] = re.findall(r"bloomd-worker\.service\" <<SERVICE\n(.*?)^SERVICE$", script, re.DOTALL | re.MULTILINE)
    for name, value in {
        "$RUN_AS": "bloomd-worker",
        "$VENV/bin": "/usr/bin",
        "$CONFIG": "/etc/bloomd-worker/worker.yaml",
        "$SERVICE_PATH": setting("bloomd-worker", "Environment=PATH"),
        "$STATE": "/var/lib/bloomd-worker",
    }.items():
        written = written.replace(name, value)
    assert written[written.index("[Unit]") :] == UNITS["bloomd-worker"][UNITS["bloomd-worker"].index("[Unit]") :]


def test_the_users_and_groups_are_made(tmp_path):
    (tmp_path / "etc").mkdir()
    files = [ROOT / "systemd" / f"{name}.sysusers" for name in UNITS]
    done = run(require("systemd-sysusers"), f"--root={tmp_path}", *files)
    assert done.returncode == 0, done.stderr
    users = [line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()]
    groups = [line.split(":") for line in (tmp_path / "etc/group").read_text().splitlines()]
    homes = {name: (home, shell) for name, _, _, _, _, home, shell in users}
    assert homes == {name: (f"/var/lib/{name}", "/usr/sbin/nologin") for name in UNITS}
    members = {name: who for name, _, _, who in groups}
    assert members == {"bloomd": "", "bloomd-worker": "", "bloomd-admin": "bloomd", "bloomd-web": "bloomd"}
