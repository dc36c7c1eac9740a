"""The completions, as each shell itself gives them."""

import contextlib
import os
import pty
import subprocess
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread, Timer

import pytest
from tools import require

from bloomd import cli, ctl

COMPLETIONS = Path(__file__).parents[2] / "completions"
FILE, DIRECTORY = "a prompt.txt", "kept"

# What may come next, by the line before the cursor.
CASES = {
    "bloomd-ctl ta": {"task"},
    "bloomd-ctl -o j": {"json"},
    "bloomd-ctl ping --output ": {"text", "json"},
    "bloomd-ctl ping --output=j": {"json"},
    "bloomd-ctl -o json worker t": {"token"},
    # A value is no command, and an option's value is that of its own command.
    "bloomd-ctl -s task ad": set(),
    "bloomd-ctl task add --agent list --form": {"--format"},
    "bloomd-ctl task list --status le": {"leased"},
    "bloomd-ctl workers --status o": {"online", "offline"},
    "bloomd-ctl task list --worker gpu-1 --st": {"--status"},
    "bloomd dev --worker --p": {"--port"},
    "bloomd worker --max-concurrency 2 --lab": {"--label"},
    "bloomd-ctl pause --wait 60 --re": {"--reason"},
    "bloomd-ctl log-level w": {"warning"},
    # Files and directories where there must be one, and nowhere else.
    "bloomd-ctl task add -f ": {FILE, DIRECTORY},
    "bloomd-ctl log -f ": set(),
    "bloomd-ctl bugreport -o ": {FILE, DIRECTORY},
    "bloomd check --config a": {FILE},
    "bloomd dev --dir ": {DIRECTORY},
    "bloomd-ctl task add --context ": set(),
    "bloomd-ctl task add a": set(),
    "bloomd-ctl why ": set(),
    "bloomd-ctl nonsense --wa": set(),
}


def lines(parser: ArgumentParser, command: str) -> Iterator[tuple[str, set[str]]]:
    """Every command with what may follow it, from the parsers themselves."""
    yield f"{command} -", {option for action in parser._actions for option in action.option_strings}
    words = {word for action in parser._actions if not action.option_strings for word in action.choices or ()}
    yield f"{command} ", words
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for word, of in action.choices.items():
                yield from lines(of, f"{command} {word}")


ALL = CASES | dict(lines(cli._parser(), "bloomd")) | dict(lines(ctl._parser(), "bloomd-ctl"))


class Terminal:
    """A shell that edits lines. At Ctrl-T it tells through a pipe what may come next, and ends that with a line END."""

    def __init__(self, command: list[str], directory: Path, **environment: str) -> None:
        self.ours, theirs = pty.openpty()
        reading, writing = os.pipe()
        home = str(directory.parent)
        self.shell = subprocess.Popen(
            command,
            cwd=directory,
            env={"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": home, "TOLD": str(writing), **environment},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            pass_fds=[writing],
            start_new_session=True,
        )
        os.close(theirs)
        os.close(writing)
        self.told = os.fdopen(reading)
        self.patience = Timer(20, self.shell.kill)
        self.patience.start()
        self.reader = Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # that is how the end of a terminal is told
            while os.read(self.ours, 65536):
                pass

    def answer(self) -> list[str]:
        lines: list[str] = []
        while (line := self.told.readline()) != "END\n":
            assert line, "the shell has ended"
            lines.append(line.rstrip("\n"))
        return lines

    def type(self, line: str) -> list[str]:
        os.write(self.ours, line.encode() + b"\x14")
        return self.answer()

    def close(self) -> None:
        self.patience.cancel()
        self.shell.kill()
        self.shell.wait()
        self.reader.join()
        self.told.close()
        os.close(self.ours)


# Readline inserts all that is possible, and what is then run says with which words.
BASH = """
source {completions}/bloomd.bash
source {completions}/bloomd-ctl.bash
bloomd() {{ printf '%s\\n' "$@" END >&$TOLD; }}
bloomd-ctl() {{ bloomd "$@"; }}
bind '"\\C-t": "\\M-*\\C-m"'
echo END >&$TOLD
"""

# Each time that the completion adds matches, these are told, except where it only looks for them itself.
ZSH = """
fpath=({completions} $fpath)
autoload -Uz compinit && compinit -D -u
compadd() {{
    if [[ ${{@[1,(i)(-|--)]}} != *-(O|A|D)\\ * ]]; then
        local -a found
        builtin compadd -A found "$@"
        print -rl -- $found >&$TOLD
    fi
    builtin compadd "$@"
}}
tell() {{ zle list-choices; print END >&$TOLD; zle kill-whole-line }}
ready() {{ print END >&$TOLD }}
zle -N tell
zle -N zle-line-init ready
bindkey '^T' tell
"""


def bash(directory: Path) -> dict[str, list[str]]:
    rc = directory.parent / "rc"
    rc.write_text(BASH.format(completions=COMPLETIONS))
    with contextlib.closing(Terminal([require("bash"), "--rcfile", str(rc), "-i"], directory)) as terminal:
        terminal.answer()
        return {line: terminal.type(line)[line.count(" ") - 1 :] for line in ALL}


def zsh(directory: Path) -> dict[str, list[str]]:
    (directory.parent / ".zshrc").write_text(ZSH.format(completions=COMPLETIONS))
    with contextlib.closing(
        Terminal([require("zsh"), "-d", "-i"], directory, ZDOTDIR=str(directory.parent))
    ) as terminal:
        terminal.answer()
        return {line: terminal.type(line) for line in ALL}


def fish(directory: Path) -> dict[str, list[str]]:
    script = f"""
        source {COMPLETIONS}/bloomd.fish
        source {COMPLETIONS}/bloomd-ctl.fish
        for line in (cat ../lines)
            complete -C $line | string replace -r '\\t.*' ''
            echo END
        end
    """
    (directory.parent / "lines").write_text("\n".join(ALL))
    environment = {**os.environ, "HOME": str(directory.parent)}
    told = subprocess.check_output(
        [require("fish"), "--no-config", "-c", script], cwd=directory, env=environment, text=True, timeout=20
    )
    words = iter(told.splitlines())
    answers = {line: list(iter(words.__next__, "END")) for line in ALL}
    # It offers also what has the typed letters somewhere else than at the beginning.
    return {line: [word for word in answers[line] if word.startswith(line.rpartition(" ")[2])] for line in ALL}


@pytest.mark.parametrize("shell", [bash, zsh, fish])
def test_a_shell_knows_every_command_option_and_choice(
    shell: Callable[[Path], dict[str, list[str]]], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    (work / DIRECTORY).mkdir(parents=True)
    (work / FILE).touch()
    answers = shell(work)
    for line, expected in ALL.items():
        last = line.split(" ")[-1]
        words = {word.replace("\\ ", " ").rstrip("/").rpartition("=")[2] for word in answers[line] if word}
        if not last.startswith("-"):  # zsh shows options where there is nothing else
            words = {word for word in words if not word.startswith("-")}
        assert words - {last} == expected - {last}, line


@pytest.mark.parametrize("file", sorted(COMPLETIONS.glob("*.bash")), ids=lambda file: file.name)
def test_shellcheck_finds_nothing(file: Path) -> None:
    check = subprocess.run([require("shellcheck"), "-s", "bash", file], capture_output=True, text=True, check=False)
    assert check.stdout == ""
