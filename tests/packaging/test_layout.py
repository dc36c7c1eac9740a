"""The layout of the sources: imports point downwards, files are of a size to read, and nothing names a machine."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "bloomd").rglob("*.py"))

# From the top to the bottom. A part imports from the rows below its own, and from itself.
LAYERS = (
    {"cli"},
    {"serving", "migrating"},
    {"daemon", "doctor"},
    {"reload", "companion"},
    {"http", "control"},
    {"status"},
    {"verdict"},
    {"node"},
    {"membridge", "probes", "worker", "backup"},
    {"objects"},  # the probe of MinIO asks through it
    {"runtime"},
    {"postgres", "supervisor", "settings", "exchange", "unixsocket", "notify", "logs"},
    {"errors", "redaction"},
)
LEVELS = {part: level for level, row in enumerate(LAYERS) for part in row}

# What bloomd-ctl is made of: the standard library and these, which import nothing else of ours.
CLIENT = {
    "bloomd.ctl",
    "bloomd.redaction",
    "bloomd.control.bugreport",
    "bloomd.control.client",
    "bloomd.control.codes",
    "bloomd.control.commands",
    "bloomd.control.following",
    "bloomd.control.layout",
    "bloomd.control.machine",
    "bloomd.control.render",
    "bloomd.control.render_work",
    "bloomd.control.tasking",
    "bloomd.control.terminal",
    "bloomd.control.until",
    "bloomd.control.answers",
    "bloomd.control.answers_report",
    "bloomd.control.answers_workers",
}

# These stand outside the rows: the version, and the words that both ends of the control socket use.
FREE = {"bloomd", *CLIENT}

MAX_LINES = 400


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def imports_of(path: Path) -> Iterator[str]:
    """The modules of ours that it imports anywhere, also those of a function or of TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            named = [name if name in NAMES else str(node.module) for name in whole]
        else:
            continue
        yield from (name for name in named if name.partition(".")[0] == "bloomd")


def part_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path) not in FREE], ids=name_of)
def test_imports_point_downwards(path: Path) -> None:
    part = part_of(name_of(path))
    for imported in set(imports_of(path)) - FREE:
        if part_of(imported) != part:
            assert LEVELS[part_of(imported)] > LEVELS[part], imported


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path) in CLIENT], ids=name_of)
def test_the_client_needs_nothing_of_the_daemon(path: Path) -> None:
    assert set(imports_of(path)) <= FREE - {"bloomd.ctl"}


def test_every_part_has_its_place() -> None:
    assert {part_of(name) for name in NAMES - {"bloomd"}} <= {*LEVELS, "ctl"}


def test_no_file_is_too_long_to_read() -> None:
    long = {name_of(path): lines for path in MODULES if (lines := len(path.read_text().splitlines())) > MAX_LINES}
    assert long == {}


def test_every_package_says_what_it_is_about() -> None:
    silent = [name_of(path) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_no_file_names_a_machine_or_an_index() -> None:
    """Homes and build directories of this machine, and addresses of package indexes, in what git tracks."""
    # The brackets keep this line from being found itself.
    forbidden = re.compile(r"/[r]oot/\w|/[w]ork/\w|/[h]ome/\w|[p]ypi\.org|(?<!emit-)[i]ndex-url")
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a clone: git tracks nothing here")
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name in listed.stdout.decode().split("\0")
        if name and (ROOT / name).is_file()
        for number, line in enumerate((ROOT / name).read_text(errors="replace").splitlines(), 1)
        if forbidden.search(line)
    ]
    assert found == []
