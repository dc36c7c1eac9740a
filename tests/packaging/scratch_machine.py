"""A machine to install a worker on: a directory instead of /, a shell, and fakes of what would change the real one."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tools import require

# Written down with their arguments. They do nothing else, but for what follows.
FAKES = ("chown", "rc-update", "rc-service", "systemctl", "apt-get")

# Says who runs the script, and knows the user once there is one.
ID = """\
if [ "$1" = -u ]; then echo {uid}; else test -e {made}; fi
"""

# Makes a virtual environment at once: what pip would fetch is there already, and so is pip.
PYTHON = """\
if [ "$1 $2" = "-m venv" ]; then
    {python} -m venv --without-pip --clear "$4" && echo {third_party} >"$(echo "$4"/lib/python3.*)/site-packages/x.pth"
else
    exec {python} "$@"
fi
"""

# With which busybox has to do.
APPLETS = ("cat", "chmod", "grep", "mkdir", "mktemp", "rm", "echo", "test")


def third_party(directory: Path) -> Path:
    """What this test runs with, without bloomd itself, as a directory."""
    [installed] = [Path(each) for each in sys.path if each.endswith("site-packages")]
    for each in installed.iterdir():
        if not each.name.startswith(("bloomd", "_bloomd", "__")) and each.suffix != ".pth":
            (directory / each.name).symlink_to(each)
    return directory


class ScratchMachine:
    """`shell` is dash, or busybox with its own tools and no others."""

    def __init__(self, directory: Path, third_party: Path, *, shell: str, root: bool = True, init: str = "") -> None:
        self.root = directory / "root"
        self.calls = directory / "calls"
        self.tools = directory / "bin"
        self.home = self.root / "users/me"
        self._temporary = directory / "tmp"
        made = directory / "made"
        for each in (self.root, self.tools, self._temporary):
            each.mkdir(parents=True)
        if init:
            (self.root / {"openrc": "run/openrc", "systemd": "run/systemd/system"}[init]).mkdir(parents=True)
        self._fake("id", ID.format(uid=0 if root else 1000, made=made))
        self._fake("python3", PYTHON.format(python=shlex.quote(sys.executable), third_party=third_party))
        for each in FAKES:
            self._fake(each, "")
        path = str(self.tools)
        if shell == "busybox":
            self._fake("addgroup", "")
            self._fake("adduser", f": >{made}")
            for each in APPLETS:
                (self.tools / each).symlink_to(require("busybox"))
            self.shell = [require("busybox"), "sh"]
        else:
            self._fake("useradd", f": >{made}")
            self._fake("nologin", "")
            path += ":/usr/bin:/bin"
            self.shell = [require(shell)]
        self.environ = {
            "PATH": path,
            "HOME": "/users/me",
            "BLOOMD_ROOT": str(self.root),
            "TMPDIR": str(self._temporary),
            "PIP_NO_INDEX": "1",
            "PIP_NO_COMPILE": "1",
        }

    def _fake(self, name: str, does: str) -> None:
        program = self.tools / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >>{self.calls}\n{does}')
        program.chmod(0o755)

    def run(self, script: str | bytes) -> "subprocess.CompletedProcess[str]":
        """As `curl ... | sh` does."""
        done = subprocess.run(
            self.shell, input=os.fsencode(script), capture_output=True, env=self.environ, cwd=self._temporary,
            timeout=120, check=False,
        )  # fmt: skip
        return subprocess.CompletedProcess(self.shell, done.returncode, done.stdout.decode(), done.stderr.decode())

    def called(self) -> list[str]:
        """What was called of the fakes since this was asked last."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return lines

    @property
    def untouched(self) -> bool:
        """Whether nothing has happened here."""
        return not self.calls.exists() and not any(
            path.is_file() for directory in (self.root, self._temporary) for path in directory.rglob("*")
        )
