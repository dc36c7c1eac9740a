"""A Debian with OpenRC that lives as long as a `with` block: `.ci/openrc-root` has made it, and nothing changes it.

What is written goes into a layer of memory over it. It has mounts and processes of its own, and the network of this
machine. When the block ends, or the test dies, its first process is killed, and the kernel takes away all of it.
"""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from servers import DEADLINE_SECONDS
from tools import lacking

SOURCES = Path(__file__).parents[2]
SCRIPT = SOURCES / ".ci" / "openrc-root"

# $1: what was made, $2: where to mount, $3: the sources. The first process reaps those whose parents have ended.
INIT = """\
mount -t tmpfs -o mode=755 tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
cd "$2/root"
mkdir -p src run/openrc
mount --bind "$3" src
mount -o remount,bind,ro src
mount -t proc proc proc
touch run/openrc/softlevel
exec chroot . python3 -c "import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print('up', flush=True)
while True: signal.pause()"
"""

# As on a console; pip finds what it wants in the root.
ENVIRON = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "PIP_NO_INDEX": "1",
    "PIP_FIND_LINKS": "/wheels",
    "EINFO_COLOR": "no",
}


class OpenrcRoot:
    """`run` is a shell in it, as root, in the directory of the sources."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            lacking("only root can make a root with OpenRC")
        self._made = subprocess.run([SCRIPT, "--where"], capture_output=True, text=True, check=True).stdout.strip()
        if not Path(self._made).is_dir():
            lacking("there is no root with OpenRC; .ci/openrc-root makes one")

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="openrc-", dir="/tmp"))
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        self._process = subprocess.Popen(
            [*unshare, "sh", "-e", "-c", INIT, "init", self._made, self._directory, SOURCES],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout
        if self._process.stdout.readline() != "up\n":  # what is wrong is on stderr
            self.__exit__()
            lacking("the root with OpenRC does not come up here")
        [self.pid] = map(int, Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=DEADLINE_SECONDS)
        self._directory.rmdir()  # nothing was mounted there, and nothing written

    def command(self, script: str) -> list[str]:
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--root", "--wd", "env", "-i"]
        variables = [f"{name}={value}" for name, value in ENVIRON.items()]
        return [*enter, *variables, "sh", "-c", f"cd /src; {script}"]

    def run(self, script: str, *, seconds: float = 120) -> "subprocess.CompletedProcess[str]":
        """What it says is one text, as on a terminal."""
        return subprocess.run(
            self.command(script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=seconds, check=False,
        )  # fmt: skip

    def ok(self, script: str) -> str:
        """What it says; it has to succeed."""
        done = self.run(script)
        assert done.returncode == 0, f"{script}: {done.stdout}"
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """The file keeps owner and mode, when there is one."""
        subprocess.run(self.command(f"cat >{path}"), input=text, text=True, check=True, timeout=DEADLINE_SECONDS)

    def processes(self) -> dict[int, str]:
        """All but the first one, and those that look."""
        lines = self.ok("ps -e -o pid= -o ppid= -o args=").splitlines()
        found = [(int(pid), int(parent), args) for pid, parent, args in (line.split(None, 2) for line in lines)]
        return {pid: args for pid, parent, args in found if pid != 1 and parent != 0 and not args.startswith("ps -e")}
