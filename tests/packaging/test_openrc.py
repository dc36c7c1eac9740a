"""openrc/: the scripts and their conf.d files, read by the shells that will run them. test_openrc_root.py runs them."""

import re
import socket
import subprocess
from pathlib import Path

import pytest
from bloomd_process import BIN
from tools import require

from bloomd import cli, ctl
from bloomd.settings.model import Control, Http, Worker
from bloomd.supervisor.trouble import CRASH_BUDGET, CRASH_WINDOW

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "openrc" / "bloomd"
TEXTS = {name: (ROOT / "openrc" / name).read_text() for name in ("bloomd", "bloomd-worker")}
TEXT = TEXTS["bloomd"]
INSTALL = ROOT / "bloomd" / "http" / "install" / "install.sh"

# Debian's and Alpine's /bin/sh, by the programs that they are.
SHELLS = (["sh"], ["dash"], ["busybox", "sh"])


def run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def assigned(name: str, text: str = TEXT) -> str:
    """What the script assigns to a variable."""
    return re.findall(rf'^{name}="(.*)"$', text, re.MULTILINE)[0]


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@pytest.mark.parametrize("file", sorted((ROOT / "openrc").iterdir()), ids=lambda file: file.name)
def test_shells_can_read_it(shell: list[str], file: Path) -> None:
    done = run([require(shell[0]), *shell[1:], "-n", file])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["openrc/bloomd", "openrc/bloomd-worker", ".ci/run", ".ci/openrc-root"])
def test_shellcheck_finds_nothing(name: str) -> None:
    dialect = ["-s", "sh"] if name.startswith("openrc") else []
    done = run([require("shellcheck"), *dialect, ROOT / name])
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", TEXTS)
def test_it_can_be_executed(name: str) -> None:
    assert (ROOT / "openrc" / name).stat().st_mode & 0o111
    assert TEXTS[name].startswith("#!/sbin/openrc-run\n")


def test_the_daemon_takes_the_arguments_it_is_started_with() -> None:
    arguments = assigned("command_args").replace("$BLOOMD_CONFIG", "/x.yaml").replace("$BLOOMD_ENV_FILE", "/x.env")
    options = cli._parser().parse_args(arguments.split())
    assert (options.command, options.config, options.env_file) == (cli._run, Path("/x.yaml"), Path("/x.env"))


def test_the_worker_takes_the_arguments_it_is_started_with() -> None:
    arguments = assigned("command_args", TEXTS["bloomd-worker"]).replace("$BLOOMD_WORKER_CONFIG", "/x.yaml")
    options = cli._parser().parse_args(arguments.split())
    assert (options.command, options.config) == (cli._worker, Path("/x.yaml"))


def test_every_other_call_of_ours_is_one_that_exists() -> None:
    commands = re.findall(r"\bas_bloomd (\w+(?: --\w+)*)", TEXT)
    parsed = [
        cli._parser().parse_args([*command.split(), "--config", "f", "--env-file", "e"]).command for command in commands
    ]
    assert set(parsed) == {cli._check, cli._migrate}
    assert "$* --config '$BLOOMD_CONFIG' --env-file '$BLOOMD_ENV_FILE'" in TEXT
    assert " check --config '$BLOOMD_WORKER_CONFIG'" in TEXTS["bloomd-worker"]
    calls = re.findall(r"\btell (\w+(?: \w+)*)", TEXT)
    methods = {ctl._parser().parse_args(call.split()).method for call in calls}
    assert methods == {"reload", "ping", "queue.pause", "status", "restart"}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_its_commands_are_functions_with_a_description(text: str) -> None:
    commands = f"{assigned('extra_commands', text)} {assigned('extra_started_commands', text)}".split()
    for command in [each for each in commands if not each.startswith("$")]:
        assert re.search(rf"^{command}\(\) {{$", text, re.MULTILINE)
        assert assigned(f"description_{command}", text)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_it_keeps_the_commands_of_supervise_daemon(text: str) -> None:
    """Without them its health check is an unknown command, and a healthy daemon is restarted for ever."""
    assert "$extra_commands" in assigned("extra_commands", text).split()


@pytest.mark.parametrize("name", TEXTS)
def test_the_defaults_are_those_of_the_configuration_file(name: str) -> None:
    defaults = dict(re.findall(r'^: "\$\{(\w+):=(.*)\}"$', TEXTS[name], re.MULTILINE))
    defaults |= dict(re.findall(r'^(\w+)="\$\{\1:-(.*)\}"$', TEXTS[name], re.MULTILINE))
    confd = (ROOT / "openrc" / f"{name}.confd").read_text()
    shown = dict(re.findall(r'^#(\w+)="(.*)"$', confd, re.MULTILINE))
    assert {name: shown[name] for name in defaults} == defaults


def test_the_defaults_are_those_of_the_daemon() -> None:
    defaults = dict(re.findall(r'^: "\$\{(\w+):=(.*)\}"$', TEXT, re.MULTILINE))
    assert defaults["BLOOMD_CONFIG"] == str(cli.DEFAULT_FILE)
    assert defaults["BLOOMD_SOCKET"] == Control().socket == ctl.DEFAULT_SOCKET
    assert assigned("directory", TEXTS["bloomd-worker"]) == Worker().root


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_it_gives_up_when_the_supervisor_of_the_daemon_would(text: str) -> None:
    """One rule for both, so that an operator has to know one."""
    limits = {name: int(value) for name, value in re.findall(r"^respawn_(max|period)=(\d+)$", text, re.MULTILINE)}
    assert limits == {"max": CRASH_BUDGET, "period": CRASH_WINDOW}


def test_it_looks_every_half_minute_whether_the_daemon_hangs() -> None:
    assert assigned("healthcheck_timer") == "${healthcheck_timer:-30}"


@pytest.mark.parametrize(
    ("name", "drains"), [("bloomd", Http().drain_seconds), ("bloomd-worker", Worker().grace_seconds)]
)
def test_a_stop_waits_longer_than_what_is_under_way_may_take(name: str, drains: float) -> None:
    [seconds] = re.findall(r"retry:-TERM/(\d+)/KILL/", TEXTS[name])
    assert int(seconds) > drains


def test_the_install_script_writes_the_same_script() -> None:
    """The machine of a worker that was installed by it has another place for the program, and no other difference."""
    [written] = re.findall(
        r"init\.d/bloomd-worker\" <<SERVICE\n(.*?)^SERVICE$", INSTALL.read_text(), re.DOTALL | re.MULTILINE
    )
    written = re.sub(
        r"(?<!\\)\$(VENV/bin|CONFIG|SERVICE_PATH|STATE)\b",
        lambda match: {
            "VENV/bin": "/usr/bin",
            "CONFIG": "/etc/bloomd-worker/worker.yaml",
            "SERVICE_PATH": assigned("claude_path", TEXTS["bloomd-worker"]),
            "STATE": assigned("directory", TEXTS["bloomd-worker"]),
        }[match[1]],
        written,
    )
    written = re.sub(r"\\([\\$`])", r"\1", written)
    ours = TEXTS["bloomd-worker"]
    assert written[written.index("# shellcheck") :] == ours[ours.index("# shellcheck") :]


def test_nginx_finds_the_socket_in_the_directory_made_for_it() -> None:
    [path] = re.findall(r"^ +server unix:(.*);$", (ROOT / "nginx" / "bloomd-upstream.conf").read_text(), re.MULTILINE)
    assert re.search(rf"checkpath --directory --owner bloomd:bloomd-web --mode 0750 {Path(path).parent} ", TEXT)


# What openrc-run gives a script, as far as `checkconfig` asks for it; everybody is the user bloomd here.
OPENRC = """\
einfo() { echo "$*"; }
eerror() { echo "$*" >&2; }
su() { sh -c "$4"; }
"""


@pytest.mark.parametrize(
    ("programs", "content", "code", "told"),
    [
        (BIN, "http: {}\n", 0, ""),
        (BIN, "http:\n  bnd: []\n", 1, "bloomd.yaml:2:3: unknown key `bnd`"),
        (BIN, "control:\n  socket: /run/x.sock\n", 1, "control.socket is /run/x.sock, and this service asks at /run/b"),
        (Path("/nowhere"), "http: {}\n", 1, "no program /nowhere/bloomd that it may run"),
    ],
    ids=["right", "error", "socket", "missing"],
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


@pytest.mark.parametrize(
    ("content", "env_file", "code", "told"),
    [
        ("http: {}\n", "PORT=x\n", 1, "bloom.env:1: PORT: "),
        ("env_file: null\n", "PORT=x\n", 0, ""),
        ("http: {}\n", "PORT=5055\n", 0, "bloom.env counts, too, and is stronger"),
        ("http: {}\n", None, 0, ""),
    ],
    ids=["read", "left-out", "told", "none"],
)
def test_the_environment_file_of_the_node_runtime_counts_when_it_is_there(
    tmp_path: Path, content: str, env_file: str | None, code: int, told: str
) -> None:
    (tmp_path / "bloomd.yaml").write_text(content)
    if env_file is not None:
        (tmp_path / "bloom.env").write_text(env_file)
    variables = f"RC_SVCNAME=bloomd BLOOMD_BIN={BIN} BLOOMD_CONFIG={tmp_path}/bloomd.yaml"
    variables += f" BLOOMD_ENV_FILE={tmp_path}/bloom.env"
    done = run(["sh", "-c", f"{OPENRC} {variables}; . {SCRIPT}; checkconfig"])
    said = done.stdout + done.stderr
    assert (done.returncode, told in said) == (code, True), said
    assert ("counts, too" in said) is ("counts" in told)


@pytest.mark.parametrize(
    ("program", "code"),
    [("#!/bin/sh\nexit 0\n", 0), ("#!/bin/sh\nexit 1\n", 1), (None, 0)],
    ids=["well", "hangs", "gone"],
)
def test_a_daemon_is_not_replaced_because_nobody_can_ask_it(tmp_path: Path, program: str | None, code: int) -> None:
    """The programs are away for a moment while another version takes their place."""
    if program:
        (tmp_path / "bloomd-ctl").write_text(program)
        (tmp_path / "bloomd-ctl").chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        variables = f"RC_SVCNAME=bloomd BLOOMD_BIN={tmp_path} BLOOMD_SOCKET={tmp_path}/s"
        done = run(["sh", "-c", f"{OPENRC} {variables}; . {SCRIPT}; healthcheck"])
    assert (done.returncode, done.stderr) == (code, "")
