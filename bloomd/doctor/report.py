"""The findings as text for a person, or as JSON for a program; and the exit code that tells the worst."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from textwrap import wrap

import msgspec
import trio

from bloomd import __version__
from bloomd.control import terminal
from bloomd.control.layout import Look, printable
from bloomd.doctor.checks import run
from bloomd.doctor.finding import Finding, State
from bloomd.settings import Loaded

# Raised when a field changes its meaning or goes away; new fields and new checks do not count.
SCHEMA = 1

# What a skipped check would have said nobody knows, and most often there is nothing to say.
EXIT_CODES: dict[State, int] = {"skipped": 0, "ok": 0, "warning": 1, "error": 2}

# By exit code.
_WORST: tuple[State, ...] = ("ok", "warning", "error")

# The colours of `bloomd-ctl status`, by words that have them there.
_MEANINGS: dict[State, str] = {"ok": "ok", "skipped": "disabled", "warning": "degraded", "error": "down"}


class Report(msgspec.Struct, frozen=True):
    """What `bloomd doctor -o json` prints."""

    schema: int
    version: str
    """Of this program, which need not be the one that runs."""
    worst: State
    """`ok`, `warning` or `error`, as the exit code 0, 1 or 2 has it."""
    checks: Sequence[Finding]
    """Every check, in the order of the text."""


def main(read: Callable[[], Loaded], *, config: Path | None, option: str, output: str, verbose: bool) -> int:
    """The command; its exit code."""
    findings = trio.run(partial(run, read, config=config, option=option))
    code = max(EXIT_CODES[finding.state] for finding in findings)
    if output == "json":
        report = Report(SCHEMA, __version__, _WORST[code], findings)
        lines = json.dumps(msgspec.to_builtins(report), indent=2)
    else:
        lines = terminal.text(text(findings, terminal.look(), verbose=verbose))
    try:
        print(lines, flush=True)
    except BrokenPipeError:  # `| head` has seen enough; the interpreter must not find that out again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def text(findings: Sequence[Finding], look: Look, *, verbose: bool = False) -> Iterator[str]:
    """The complaints, the worst last, where the eye is when all has been printed; or everything, by subject."""
    if verbose:
        for subject, group in groupby(findings, key=lambda finding: finding.subject):
            yield subject
            for finding in group:
                yield from _lines(finding, look)
    else:
        complaints = [finding for finding in findings if EXIT_CODES[finding.state]]
        for finding in sorted(complaints, key=lambda finding: EXIT_CODES[finding.state]):
            yield from _lines(finding, look)
    yield _summary(findings, look, verbose=verbose)


def _lines(finding: Finding, look: Look) -> Iterator[str]:
    head = f"{finding.state:<7}  {finding.check}: "
    first, *rest = wrap(
        head + printable(finding.found),
        look.width,
        subsequent_indent=" " * 9,
        break_on_hyphens=False,
        break_long_words=False,
    )
    yield first.replace(finding.state, look.paint(finding.state, _MEANINGS[finding.state]), 1)
    yield from rest
    if finding.fix:
        # Not wrapped: it is to be copied.
        yield f"         → {printable(finding.fix)}"


def _summary(findings: Sequence[Finding], look: Look, *, verbose: bool) -> str:
    counted: list[str] = []
    for state in reversed(EXIT_CODES):
        number = sum(finding.state == state for finding in findings)
        plural = "s" if number > 1 and EXIT_CODES[state] else ""
        if number:
            counted.append(f"{number} {look.paint(state + plural, _MEANINGS[state])}")
    hint = "" if verbose else "; -v shows all"
    return f"{len(findings)} checks: {', '.join(counted)}{hint}"
