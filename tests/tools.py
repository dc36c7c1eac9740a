"""Programs that are not Python's and that some tests need: one rule for all of them.

Missing on a developer's machine, such a program is a skip with its name in the list at the end; with CI=true it is a
failure, so that no test is left out without anybody noticing.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest


def require(tool: str) -> str:
    """The path of this program. Without it, the test that asks is skipped, or fails under CI."""
    # A developer's PATH often lacks the directories in which Debian keeps servers.
    ours = str(Path(sys.executable).parent)  # where a wheel may have put it
    path = shutil.which(tool, path=os.pathsep.join([ours, os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if not path:
        lacking(f"{tool} is not installed; .ci/run installs it")
    return path


def lacking(reason: str) -> NoReturn:
    """Skip the test that lacks something, or let it fail under CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
