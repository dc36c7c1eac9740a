"""Both READMEs: the same in two languages, with commands that are understood and links that lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from bloomd import cli, ctl

ROOT = Path(__file__).parents[2]
NAMES = ("README.md", "README.uk.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(name: str) -> list[tuple[str, str]]:
    """What is to be typed or copied, in the order of the text: the language and the lines, without their comments."""
    found = BLOCK.findall((ROOT / name).read_text())
    return [(language, re.sub(r" +# \S.*", "", text)) for language, text in found]


def prose(name: str) -> str:
    return BLOCK.sub("", (ROOT / name).read_text())


def headings(name: str) -> list[tuple[str, str]]:
    return re.findall(r"^(#+) (.+)$", prose(name), re.MULTILINE)


def anchors(name: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    return {"#" + re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for _, text in headings(name)}


def test_both_have_the_same_sections() -> None:
    english, ukrainian = ([level for level, _ in headings(name)] for name in NAMES)
    assert english == ukrainian


def test_both_have_the_same_commands_and_settings() -> None:
    english, ukrainian = map(blocks, NAMES)
    drawings = [at for at, (language, _) in enumerate(english) if not language]  # which have words in them
    for at in reversed(drawings):
        del english[at], ukrainian[at]
    assert english == ukrainian


def test_both_name_the_same_things() -> None:
    """What stands as code in the text: programs, options, files, settings."""
    english, ukrainian = (set(re.findall(r"`([^`\n]+)`", prose(name))) for name in NAMES)
    assert english == ukrainian


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", prose(name))
    assert links
    for link in links:
        if not link.startswith("https://"):
            assert link in anchors(name) if link.startswith("#") else (ROOT / link).exists(), link


@pytest.mark.parametrize("name", NAMES)
def test_what_is_to_be_typed_is_understood(name: str) -> None:
    typed = "\n".join(text for language, text in blocks(name) if language == "console")
    calls = re.findall(r"^[#$] (bloomd(?:-ctl)? [^|&<>\n]*)", typed, re.MULTILINE)
    assert len(calls) > 20
    for program, *arguments in map(shlex.split, calls):
        parser = ctl._parser() if program == "bloomd-ctl" else cli._parser()
        parser.parse_args([argument for argument in arguments if argument != "..."])


@pytest.mark.parametrize("name", NAMES)
def test_the_service_has_the_commands_that_are_shown(name: str) -> None:
    script = (ROOT / "openrc" / "bloomd").read_text()
    own = " ".join(re.findall(r'^extra_(?:started_)?commands="([^"$]*)', script, re.MULTILINE)).split()
    shown = set(re.findall(r"rc-service bloomd (\w+)", (ROOT / name).read_text()))
    assert {"migrate", "checkconfig", "drain"} <= shown <= {"start", "stop", "restart", "status", *own}
