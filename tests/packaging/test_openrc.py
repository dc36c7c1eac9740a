"""openrc/bloomd and its conf.d file, read by the shells that will run them."""

import re
import subprocess
from pathlib import Path

import pytest
from bloomd_process import BIN
from tools import require

from bloomd import cli, ctl
from bloomd.settings.model import Control, Http
from bloomd.supervisor.trouble import CRASH_BUDGET, CRASH_WINDOW

ROOT = Path(__file__).parents[2]
SCRIPT, CONFD = ROOT / "openrc" / "bloomd", ROOT / "openrc" / "bloomd.confd"
TEXT = SCRIPT.read_text()

# Debian's and Alpine's /bin/sh, by the programs that they are.
SHELLS = (["sh"], ["dash"], ["busybox", "sh"])


def run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def assigned(name: str, text: str = TEXT) -> str:
    """What the script assigns to a variable."""
    return re.findall(rf'^{name}="(.*)"$', text, re.MULTILINE)[0]


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@pytest.mark.parametrize("file", [SCRIPT, CONFD], ids=lambda file: file.name)
def test_shells_can_read_it(shell: list[str], file: Path) -> None:
    done = run([require(shell[0]), *shell[1:], "-n", file])
    assert (done.returncode, done.stderr) == (0, "")


def test_shellcheck_finds_nothing() -> None:
    done = run([require("shellcheck"), "-s", "sh", SCRIPT])
    assert (done.returncode, done.stdout) == (0, "")


def test_shellcheck_finds_nothing_in_the_ci_script() -> None:
    done = run([require("shellcheck"), ROOT / ".ci" / "run"])
    assert (done.returncode, done.stdout) == (0, "")


def test_it_can_be_executed() -> None:
    assert SCRIPT.stat().st_mode & 0o111
    assert TEXT.startswith("#!/sbin/openrc-run\n")


def test_the_daemon_takes_the_arguments_it_is_started_with() -> None:
    arguments = assigned("command_args").replace("$BLOOMD_CONFIG", "/x.yaml").split()
    options = cli._parser().parse_args(arguments)
    assert (options.command, options.config) == (cli._run, Path("/x.yaml"))


def test_every_other_call_of_ours_is_one_that_exists() -> None:
    checks = re.findall(r"'\$command' (check --config) ", TEXT)
    assert [cli._parser().parse_args([*check.split(), "f"]).command for check in checks] == [cli._check]
    calls = re.findall(r'/bloomd-ctl" -s "\$BLOOMD_SOCKET" (\w+)', TEXT)
    assert [ctl._parser().parse_args(["-s", "/x", call]).method for call in calls] == ["reload", "ping"]


def test_its_commands_are_functions_with_a_description() -> None:
    commands = f"{assigned('extra_commands')} {assigned('extra_started_commands')}".split()
    for command in [*(each for each in commands if not each.startswith("$")), "healthcheck"]:
        assert re.search(rf"^{command}\(\) {{$", TEXT, re.MULTILINE)
        assert assigned(f"description_{command}")


def test_it_keeps_the_commands_of_supervise_daemon() -> None:
    """Without them its health check is an unknown command, and a healthy daemon is restarted for ever."""
    assert "$extra_commands" in assigned("extra_commands").split()


def test_the_defaults_are_those_of_the_daemon_and_of_the_configuration_file() -> None:
    defaults = dict(re.findall(r'^: "\$\{(\w+):=(.*)\}"$', TEXT, re.MULTILINE))
    assert defaults["BLOOMD_CONFIG"] == str(cli.DEFAULT_FILE)
    assert defaults["BLOOMD_SOCKET"] == Control().socket == ctl.DEFAULT_SOCKET
    shown = dict(re.findall(r'^#(\w+)="(.*)"$', CONFD.read_text(), re.MULTILINE))
    assert {name: shown[name] for name in defaults} == defaults
    assert f'retry="${{retry:-{shown["retry"]}}}"' in TEXT


def test_it_gives_up_when_the_supervisor_of_the_daemon_would() -> None:
    """One rule for both, so that an operator has to know one."""
    limits = {name: int(value) for name, value in re.findall(r"^respawn_(max|period)=(\d+)$", TEXT, re.MULTILINE)}
    assert limits == {"max": CRASH_BUDGET, "period": CRASH_WINDOW}


def test_a_stop_waits_longer_than_the_daemon_drains() -> None:
    [seconds] = re.findall(r"retry:-TERM/(\d+)/KILL/", TEXT)
    assert int(seconds) > Http().drain_seconds


def test_nginx_finds_the_socket_in_the_directory_made_for_it() -> None:
    [path] = re.findall(r"^ +server unix:(.*);$", (ROOT / "nginx" / "bloomd.conf").read_text(), re.MULTILINE)
    assert re.search(rf"checkpath --directory --owner bloomd:bloomd-web --mode 0750 {Path(path).parent} ", TEXT)


# What openrc-run gives a script, as far as `checkconfig` asks for it; everybody is the user bloomd here.
OPENRC = """\
ebegin() { :; }
eend() { [ "$1" -eq 0 ] || echo "$2" >&2; return "$1"; }
eerror() { echo "$*" >&2; }
ewarn() { echo "$*" >&2; }
su() { sh -c "$4"; }
"""


@pytest.mark.parametrize(
    ("programs", "content", "code", "told"),
    [
        (BIN, "http: {}\n", 0, ""),
        (BIN, "http:\n  bnd: []\n", 1, "bloomd.yaml:2:3: unknown key `bnd`"),
        (Path("/nowhere"), "http: {}\n", 1, "no program /nowhere/bloomd that it may run"),
    ],
    ids=["right", "error", "missing"],
)
def test_before_a_start_it_says_what_is_wrong(
    tmp_path: Path, programs: Path, content: str, code: int, told: str
) -> None:
    (tmp_path / "bloomd.yaml").write_text(content)
    (tmp_path / "bloomd.yaml").chmod(0o600)
    variables = f"RC_SVCNAME=bloomd BLOOMD_BIN={programs} BLOOMD_CONFIG={tmp_path}/bloomd.yaml"
    done = run(["sh", "-c", f"{OPENRC} {variables}; . {SCRIPT}; checkconfig"])
    assert done.returncode == code, done.stderr
    assert told in done.stderr
