"""The manual pages: well-formed, and saying what the programs say."""

import re
import shlex
import subprocess
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools import require

from bloomd import cli, ctl, migrating
from bloomd.control import tasking
from bloomd.settings.environment import VARIABLES

ROOT = Path(__file__).parents[2]
MAN = ROOT / "man"
PAGES = sorted(MAN.iterdir())
SECTIONS = ("NAME", "DESCRIPTION", "ENVIRONMENT", "FILES", "EXIT STATUS", "EXAMPLES", "SECURITY")


def plain(page: str) -> str:
    """The source of a page with its escaped hyphens as they are read."""
    return (MAN / page).read_text().replace(r"\-", "-")


def parsers(parser: ArgumentParser, command: str = "") -> Iterator[tuple[str, ArgumentParser]]:
    """Each command, also one of two words, with its parser; the program itself has no name here."""
    yield command, parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for word, of in action.choices.items():
                yield from parsers(of, f"{command} {word}".strip())


# `bloomd worker` has a page of its own, which bloomd.8 names.
BLOOMD = dict(parsers(cli._parser()))
WORKER = {"": BLOOMD.pop("worker")}
PROGRAMS = [("bloomd.8", BLOOMD), ("bloomd-worker.8", WORKER), ("bloomd-ctl.8", dict(parsers(ctl._parser())))]


def test_there_is_a_page_for_each_program_and_for_the_configuration() -> None:
    assert [page.name for page in PAGES] == ["bloomd-ctl.8", "bloomd-worker.8", "bloomd.8", "bloomd.yaml.5"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_it_is_lint_clean(page: Path) -> None:
    lint = subprocess.run(
        [require("mandoc"), "-T", "lint", "-W", "warning", page], capture_output=True, text=True, check=False
    )
    assert (lint.returncode, lint.stdout + lint.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_it_has_the_sections_of_a_manual_page(page: Path) -> None:
    headings = re.findall(r"^\.Sh (.*)", page.read_text(), re.MULTILINE)
    assert set(SECTIONS) <= set(headings)


@pytest.mark.parametrize(("page", "commands"), PROGRAMS)
def test_it_has_every_command_and_option(page: str, commands: dict[str, ArgumentParser]) -> None:
    items = " ".join(re.findall(r"^\.It (.*)", plain(page), re.MULTILINE))
    for command, of in commands.items():
        assert not command or re.search(rf"Cm {command}(?![\w-])", items), command
        for action in of._actions:
            for option in action.option_strings:
                assert re.search(rf"Fl {option[1:]}(?![\w-])", items), f"{command} {option}"


def test_bloomd_8_leads_to_the_page_of_the_worker() -> None:
    [item] = re.findall(r"^\.It Cm worker .*\n((?:(?!\.It).*\n)+)", plain("bloomd.8"), re.MULTILINE)
    assert ".Xr bloomd-worker 8" in item


@pytest.mark.parametrize(("page", "commands"), PROGRAMS)
def test_it_has_no_option_that_the_program_lacks(page: str, commands: dict[str, ArgumentParser]) -> None:
    known = {option for of in commands.values() for action in of._actions for option in action.option_strings}
    assert {f"-{option}" for option in re.findall(r"\bFl ([\w-]+)", plain(page))} <= known


def commands_of(page: str) -> Iterator[list[str]]:
    """The calls of our programs in what is shown to be typed."""
    text = plain(page).replace(" \\e\n>    ", "")
    for shown in re.findall(r"^(?:\.Dl )?[\w-]*[#$] (.*)", text, re.MULTILINE):
        for call in re.findall(r"(?:^|\$\(|[|&] )(bloomd(?:-ctl)? [^|&<>)]*)", shown):
            yield shlex.split(call)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_it_shows_to_be_typed_is_understood(page: Path) -> None:
    calls = list(commands_of(page.name))
    assert calls or page.suffix == ".5"
    for program, *arguments in calls:
        parser = ctl._parser() if program == "bloomd-ctl" else cli._parser()
        parser.parse_args(arguments)


@pytest.mark.parametrize("service", ["bloomd", "bloomd-worker"])
def test_the_services_have_the_commands_that_are_shown(service: str) -> None:
    script = (ROOT / "openrc" / service).read_text()
    usual = {"start", "stop", "restart", "status"}
    own = set(" ".join(re.findall(r'^extra_(?:started_)?commands="([^"$]*)', script, re.MULTILINE)).split())
    shown = {
        command
        for page in PAGES
        for command in re.findall(rf"^(?:\.Dl )?[\w-]*# rc-service {service} (\w+)", plain(page.name), re.MULTILINE)
    }
    assert shown <= usual | own
    assert shown & own


BLOOMD_CODES = {cli.OK, migrating.PENDING, cli.USAGE, cli.UNAVAILABLE, cli.TEMPORARY_FAILURE, cli.BAD_CONFIGURATION}
WORKER_CODES = {cli.OK, cli.USAGE, cli.BAD_CONFIGURATION}
CTL_CODES = {ctl.OK, ctl.FAILED, ctl.DOWN, ctl.CANNOT_REACH, ctl.NOT_PERMITTED, ctl.USAGE, ctl.INTERRUPTED}
CTL_CODES |= set(tasking.ENDED.values())


@pytest.mark.parametrize(
    ("page", "codes"), [("bloomd.8", BLOOMD_CODES), ("bloomd-worker.8", WORKER_CODES), ("bloomd-ctl.8", CTL_CODES)]
)
def test_it_has_the_exit_codes(page: str, codes: set[int]) -> None:
    section = plain(page).partition(".Sh EXIT STATUS")[2].partition("\n.Sh")[0]
    assert codes <= {int(code) for code in re.findall(r"^\.It (\d+)$", section, re.MULTILINE)}


def test_bloomd_exits_as_documented_when_called_wrongly() -> None:
    with pytest.raises(SystemExit) as wrong:
        cli.main(["--nonsense"])
    assert f".It {wrong.value.code}\nWrong usage." in plain("bloomd.8")


def test_the_variables_of_the_environment_are_listed() -> None:
    assert {name for name in VARIABLES if name not in plain("bloomd.8")} == set()
