"""Hints: which files they name, and what they never open."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloomd.worker import hints
from bloomd.worker.hints import MAX_FILES, TOTAL_BYTES, read_all
from bloomd.worker.prompt import JSON_WANTED, File, Note, build

SECRET = "what nobody may read"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with some files, and a secret beside it."""
    root = tmp_path / "root"
    for name in ("notes.md", "src/a.py", "src/b.py", "src/deep/c.py", "src/.hidden.py", "contexts/x/other.md", "lock"):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"this is {name}")
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "root-too").mkdir()
    (tmp_path / "root-too" / "secret").write_text(SECRET)
    return root


def names(root: Path, hint: str) -> list[str]:
    return [item.name for item in read_all(root, [hint]) if isinstance(item, File)]


def note(root: Path, hint: str) -> str:
    [item] = read_all(root, [hint])
    assert isinstance(item, Note), item
    return item.text


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("notes.md", ["notes.md"]),
        ("./src//a.py", ["src/a.py"]),
        ("src/*.py", ["src/a.py", "src/b.py"]),
        ("src/[a]*", ["src/a.py"]),
        ("src/.*", ["src/.hidden.py"]),
        ("**/*.py", ["src/a.py", "src/b.py", "src/deep/c.py"]),
        ("src/**", ["src/a.py", "src/b.py"]),
        ("src/**/c.py", ["src/deep/c.py"]),
        ("**/**/**/c.py", ["src/deep/c.py"]),
        ("*/*/c.py", ["src/deep/c.py"]),
        ("**/other.md", []),
    ],
)
def test_a_path_or_a_glob_names_files(root, hint, expected):
    assert names(root, hint) == expected


def test_a_path_from_the_top_counts_when_it_is_inside(root):
    assert names(root, f"{root}/notes.md") == ["notes.md"]
    assert names(root, f"{root}/src/*.py") == ["src/a.py", "src/b.py"]


@pytest.mark.parametrize(
    "hint", ["use metric units", "branch: main", "*", "what?", "a/b/c", "", "n" * 5000, "a\0b", "[x"]
)
def test_what_names_no_file_is_what_it_says(root, hint):
    if hint == "*":
        (root / "notes.md").unlink()
    assert note(root, hint) == hint


@pytest.mark.parametrize(
    ("hint", "why"),
    [
        ("../secret", "may not contain `..`"),
        ("src/../../secret", "may not contain `..`"),
        ("src/../notes.md", "may not contain `..`"),
        ("**/../../secret", "may not contain `..`"),
        ("/etc/passwd", "outside of this worker's root"),
        ("contexts/x/other.md", "the worker's own"),
        ("./lock", "the worker's own"),
        ("contexts/**", "the worker's own"),
    ],
)
def test_a_hint_that_leads_elsewhere_is_refused_with_a_sentence(root, hint, why):
    assert note(root, hint) == f"{hint} (not read: {note(root, hint).partition('(not read: ')[2]}"
    assert why in note(root, hint)


def test_a_neighbour_whose_name_begins_as_the_root_does_is_outside(root, tmp_path):
    assert "outside" in note(root, f"{tmp_path}/root-too/secret")


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "../root-too/secret", "../../nowhere", ".."])
def test_a_link_that_leads_out_is_refused(root, target):
    (root / "link").symlink_to(target)
    (root / "way").symlink_to(Path(target).parent)
    for hint in ("link", "l*k"):
        assert "not read" in note(root, hint)
    assert SECRET not in str(read_all(root, ["link", "l*k", "way/secret", "way/*", "**/secret", "way/passwd"]))


def test_a_link_to_what_is_the_workers_own_is_refused(root):
    (root / "link").symlink_to("contexts/x/other.md")
    assert "the worker's own" in note(root, "link")


def test_a_link_within_the_root_is_followed(root):
    (root / "link").symlink_to("src/a.py")
    (root / "way").symlink_to("src")
    assert read_all(root, ["link"]) == [File("link", "this is src/a.py")]
    assert read_all(root, ["way/b.py"]) == [File("way/b.py", "this is src/b.py")]


def test_a_root_that_is_a_link_is_a_root(root, tmp_path):
    (tmp_path / "alias").symlink_to(root)
    assert names(tmp_path / "alias", "notes.md") == ["notes.md"]


def test_what_is_no_text_file_is_not_read(root):
    os.mkfifo(root / "pipe")
    (root / "picture").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (root / "latin").write_bytes("ä".encode("latin-1"))
    assert "not a file" in note(root, "src")
    assert "not a file" in note(root, "pipe")
    assert "not text" in note(root, "picture")
    assert "not text" in note(root, "latin")


def test_all_files_together_are_bounded(root):
    (root / "big").write_text("ä" * TOTAL_BYTES)
    first, second, third = read_all(root, ["notes.md", "big", "src/a.py"])
    assert isinstance(first, File)
    assert isinstance(second, File)
    assert second.cut
    assert len(first.text.encode()) + len(second.text.encode()) in (TOTAL_BYTES, TOTAL_BYTES - 1)
    assert isinstance(third, Note)
    assert "the files before it" in third.text


def test_a_binary_file_takes_no_room(root):
    (root / "binary").write_bytes(b"\0" * TOTAL_BYTES)
    assert isinstance(read_all(root, ["binary", "notes.md"])[1], File)


def test_a_glob_over_too_many_files_is_bounded(root, monkeypatch):
    (root / "many").mkdir()
    for number in range(MAX_FILES + 5):
        (root / "many" / f"{number:03}").write_text("x")
    *files, last = read_all(root, ["many/*"])
    assert len(files) == MAX_FILES
    assert "more than" in str(last)
    monkeypatch.setattr(hints, "MAX_LOOKED_AT", 10)
    assert len(names(root, "many/*")) <= 10


PARTS = st.sampled_from(
    ["..", ".", "", "*", "**", "link", "way", "secret", "root", "src", "contexts", "a.py", "?", "[s]*"]
)


@given(st.lists(PARTS, max_size=6), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_hint_ever_reads_what_is_outside(root, parts, from_the_top):
    for link, target in (("link", "../secret"), ("way", "..")):
        if not (root / link).is_symlink():
            (root / link).symlink_to(target)
    hint = (str(root.parent) if from_the_top else "") + "/".join(parts)
    assert SECRET not in str(read_all(root, [hint]))
    assert "other.md" not in " ".join(names(root, hint))


def test_a_task_without_hints_is_its_prompt():
    assert build("Add 2 and 2.", [], "text") == "Add 2 and 2."


def test_the_prompt_names_the_files_and_the_format():
    text = build("Add them.", [Note("be brief"), File("a/b.txt", "2 and 2"), File("c", "x", cut=True)], "json")
    assert text.index("be brief") < text.index('<file name="a/b.txt">\n2 and 2\n</file>') < text.index("Add them.")
    assert "[the rest did not fit]" in text
    assert text.endswith(JSON_WANTED)
