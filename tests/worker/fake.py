"""The fake CLI, and what tests ask of the processes that it makes."""

import os
import sys
from pathlib import Path

FAKE = (sys.executable, "-IS", str(Path(__file__).parents[1] / "fake_claude.py"))


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it is not only waiting to be reaped."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
