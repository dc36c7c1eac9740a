"""When a service that the daemon is nothing without fails for good, the init system learns it by the exit code."""

import subprocess
import sys

from init_system import init_system

CRASHING = """
from bloomd import cli
from bloomd.http.server import HttpServer

async def run(self, *, task_status):
    raise RuntimeError("a bug in the HTTP service")

HttpServer.run = run
cli.main()
"""


def test_the_exit_code_is_75_and_the_reason_one_sentence(bloomd, tmp_path):
    daemon = bloomd()
    with init_system(str(tmp_path / "notify")) as init:
        done = subprocess.run(
            [sys.executable, "-c", CRASHING, "run", "-c", daemon.file],
            capture_output=True, text=True, timeout=60, check=False, env=daemon.environ | init.environ,
        )  # fmt: skip
        assert init.has_heard_nothing()  # it never served
    assert done.returncode == 75, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("bloomd: essential service http has failed: RuntimeError: a bug in the HTTP service")
    assert not daemon.socket.exists()
