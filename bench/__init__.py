"""How fast bloomd is on this machine: a real daemon on a durable PostgreSQL, from outside. `make bench` runs all of it.

Figures to compare, not tests: nothing here fails because a machine is slow or busy. Each module of `__main__.SUBJECTS`
is one subject, and its `measure` gives the rows of one table.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The servers that the tests use are used here, too.
sys.path.append(str(ROOT / "tests"))
