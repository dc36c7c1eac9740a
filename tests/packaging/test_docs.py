"""What `make docs` makes is what is there."""

from docs import ROOT, made


def test_every_file_is_up_to_date() -> None:
    assert [name for name, text in made() if (ROOT / name).read_text() != text] == [], "run `make docs`"


def test_no_other_completion_is_left() -> None:
    names = {name for name, _ in made() if name.startswith("completions/")}
    assert {f"completions/{file.name}" for file in (ROOT / "completions").iterdir()} == names
