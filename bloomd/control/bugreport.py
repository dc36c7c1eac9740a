"""`bloomd-ctl bugreport`: one archive with what helps to understand a bloomd from afar.

What the daemon knows it tells itself (`facts`), redacted with the secrets that it knows; what `bloomd doctor` and the
machine say goes through its hands, too. When it does not answer, the report has what is left: the settings as
`bloomd check` reads them and the ends of the log files, in which whatever has the form of a secret is blotted out.
Either way the manifest says what is missing, and a person is to look at it all before it goes anywhere.
"""

from __future__ import annotations

import glob
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import time

from bloomd import __version__
from bloomd.control import layout, terminal
from bloomd.control.client import CannotReach, ControlFailure, Failed
from bloomd.control.machine import machine, output
from bloomd.redaction import MASK, Redaction

TYPE_CHECKING = False  # importing typing would cost as much as a call takes
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable
    from typing import Any

    from bloomd.control.answers_report import BugReport
    from bloomd.control.client import Client

    Connect = Callable[[float], Client]

# A busy daemon may take its time; a stuck one is what the report is about.
ASK_SECONDS = 15.0
# Its checks wait for servers that do not answer, each with a limit of its own.
DOCTOR_SECONDS = 90.0
CHECK_SECONDS = 20.0

# Where OpenRC has the daemon write (`openrc/bloomd`), and how much of the end of each file is taken.
LOG_DIRECTORY = "/var/log/bloomd"
TAIL_BYTES = 512 * 1024

# Where the doctor looks when it cannot be given what the daemon names.
_INSTEAD = {"-c": "at the usual configuration", "--env-file": "without it"}

# No text that matters is longer.
TEXT_LIMIT = 2000

# Of these two `bloomd check --print` shows an operator more than a report is to hold.
_SHOWN_IN_PART = re.compile(r"(?m)^((?:membridge\.admin_key|minio\.access_key) +)(?!None )\S+")

_README = """\
A report about one bloomd, made by `bloomd-ctl bugreport`. manifest.json says what is in it, what is missing,
and whether secrets were blotted out by a daemon that knows them or only by their form; then some may be left.

Passwords, keys, tokens and cookies are blotted out ({mask}). Prompts and results of tasks were not asked for. What is
left tells how this machine is set up: addresses, names of hosts, users, files and workers. Look at it before you send
it to anybody.
"""


class CannotWrite(ControlFailure):
    """There is no archive; the text says why."""


class Report:
    """What goes into the archive: texts by the name of their file, and why others are missing."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.holds: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.by_daemon = True
        self.redacted = "the daemon, by the secrets that it knows and by their form"

    def add(self, name: str, holds: str, content: Any) -> None:
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        self.files[name], self.holds[name] = text, holds

    def miss(self, what: str, why: str) -> None:
        self.missing[what] = why

    def packed(self, directory: str, at: float) -> bytes:
        """The archive, with all files in one directory."""
        content = {name: text.encode(errors="replace") for name, text in self.files.items()}
        manifest = {
            "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)),
            "made_by": f"bloomd-ctl {__version__}",
            "redacted_by": self.redacted,
            "files": [{"name": name, "bytes": len(content[name]), "holds": self.holds[name]} for name in content],
            "missing": [{"what": what, "why": why} for what, why in self.missing.items()],
        }
        first = {
            "README.txt": _README.format(mask=MASK).encode(),
            "manifest.json": (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode(errors="replace"),
        }
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for name, data in (first | content).items():
                member = tarfile.TarInfo(f"{directory}/{name}")
                member.size, member.mtime, member.mode = len(data), int(at), 0o600
                archive.addfile(member, io.BytesIO(data))
        return packed.getvalue()


def bugreport(options: Namespace, connect: Connect) -> int:
    """Write the archive, and say where it is.

    Raises:
        NotPermitted: this user may not ask the daemon.
        CannotWrite: the file is there already, or cannot be made.
    """
    if options.file is not None:
        _refuse_to_overwrite(options.file)
    report = Report()
    told = _ask_daemon(report, connect)
    at = time.time()
    node = re.sub(r"[^A-Za-z0-9._-]", "_", told["node"] if told else os.uname().nodename)
    directory = f"bloomd-bugreport-{node}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(at))}"
    config, env_file = _files_of(told)
    named = {
        "-c": options.config or _trusted("-c", config, report),
        "--env-file": _trusted("--env-file", env_file, report),
    }
    # What `bloomd dev` serves stands in no file: the doctor would look at another bloomd, or at none.
    doctor = told is None or any((options.config, config, env_file))
    if not doctor:
        report.miss("doctor", "this daemon has no configuration file by which the doctor would find it")
    files = [word for option, file in named.items() if file for word in (option, file)]
    _look_around(report, connect if told else None, files, doctor=doctor)
    path = os.path.abspath(options.file or f"{directory}.tar.gz")
    size = _write(path, report.packed(directory, at))
    if options.output == "json":
        print(json.dumps({"file": path, "bytes": size, "files": list(report.files), "missing": report.missing}))
        return 0
    lines = [f"{path}: {size} bytes, only for you to read", f"holds {', '.join(report.files)}"]
    lines += [f"missing: {what}: {why}" for what, why in report.missing.items()]
    blotted = (
        "Secrets are blotted out in it."
        if report.by_daemon
        else "Secrets are blotted out in it by their form only, without the daemon that knows them; some may be left."
    )
    lines += [
        f"{blotted} Names and addresses are not: look at it before you send it to anybody.",
        f"  tar -xzOf {shlex.quote(path)} | less",
    ]
    print(terminal.text(layout.printable(line) for line in lines))
    return 0


def _ask_daemon(report: Report, connect: Connect) -> BugReport | None:
    told: BugReport | None = None
    lines: list[str] | None = None
    why = ""
    try:
        with connect(ASK_SECONDS) as client:
            told = client.call("bugreport")
            said = client.notifications("log.recent")
            lines = [line for kind, piece in said if kind == "lines" for line in piece["lines"]]
    except (CannotReach, Failed) as failure:
        why = str(failure)
    if told:
        report.add("versions.json", "what the daemon runs with", told["versions"])
        report.add("status.json", "how everything is, as bloomd-ctl status shows it", told["status"])
        report.add("settings.json", "every setting and where it was told", told["settings"])
        report.add("limits.txt", "the limits of the daemon's process", "\n".join(told["limits"]) + "\n")
    else:
        for what in ("versions of the running daemon", "status", "limits of the daemon's process"):
            report.miss(what, why)
    if lines is not None:
        report.add("log.txt", "the latest lines of the log, from memory", "".join(f"{line}\n" for line in lines))
    else:
        report.miss("latest lines of the log in the daemon's memory", why)
    return told


def _files_of(told: BugReport | None) -> tuple[str | None, str | None]:
    """The files of settings that the daemon names; one from before an upgrade names no environment."""
    return (told["config"], told.get("env_file")) if told else (None, None)


def _trusted(option: str, path: str | None, report: Report) -> str | None:
    """The file that the daemon names, unless it could have anything read there with the rights of root."""
    if path is None:
        return None
    try:
        owner = os.stat(path).st_uid
    except OSError as error:
        if not (option == "--env-file" and isinstance(error, FileNotFoundError)):  # that one need not be there
            report.miss(path, f"{error.strerror}; the doctor looks {_INSTEAD[option]}")
        return None
    if owner in (0, os.geteuid()):
        return path
    advice = f": say -c {path}" if option == "-c" else ""
    report.miss(path, f"neither root nor you own it, so the doctor looks {_INSTEAD[option]}{advice}")
    return None


def _look_around(report: Report, connect: Connect | None, config: list[str], *, doctor: bool) -> None:
    """Add what can be had without the daemon; but for `connect`, by which it redacts that."""
    found: dict[str, Any] = {"machine.json": machine()}
    program = _program()
    if program is None:
        report.miss("doctor", "there is no program bloomd beside this bloomd-ctl")
    elif doctor:
        _consult(report, found, [program, "doctor", "-o", "json", *config])
    if connect is None:
        if program:
            _read_settings(found, [program, "check", "--print", *config])
        _read_logs(report, found)
    clean = _redacted(report, found, connect)
    for name, holds in (
        ("machine.json", "the machine, and which versions are installed"),
        ("doctor.json", "what bloomd doctor found"),
        ("settings.txt", "the settings, or what is wrong with them, as bloomd check tells it"),
    ):
        if name in clean:
            report.add(name, holds, clean.pop(name))
    for name, text in clean.items():
        report.add(name, "the end of a log", text)


def _program() -> str | None:
    """`bloomd`, of the same installation as this program."""
    for beside in (os.path.realpath(sys.argv[0]), sys.executable):
        path = os.path.join(os.path.dirname(beside), "bloomd")
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _consult(report: Report, found: dict[str, Any], command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=DOCTOR_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        report.miss("doctor", f"it was not done after {DOCTOR_SECONDS:g} seconds")
        return
    except OSError as error:
        report.miss("doctor", f"{command[0]}: {error.strerror}")
        return
    try:
        if done.returncode not in (0, 1, 2):
            raise ValueError
        found["doctor.json"] = {"command": command, "exit_code": done.returncode, "said": json.loads(done.stdout)}
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        report.miss("doctor", f"it ended with {done.returncode}: {Redaction()(' '.join(last))}")


def _read_settings(found: dict[str, Any], command: list[str]) -> None:
    if said := output(*command, seconds=CHECK_SECONDS):
        found["settings.txt"] = _SHOWN_IN_PART.sub(rf"\1{MASK}", said) + "\n"


def _read_logs(report: Report, found: dict[str, Any]) -> None:
    for path in sorted(glob.glob(os.path.join(LOG_DIRECTORY, "*.log"))):
        try:
            with open(path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
                found[f"log/{os.path.basename(path)}"] = file.read(TAIL_BYTES).decode(errors="replace")
        except OSError as error:
            report.miss(path, error.strerror or str(error))
    if os.path.isdir("/run/systemd/system") and (
        journal := output("journalctl", "-u", "bloomd", "-n", "2000", "-o", "short-iso", "--no-pager")
    ):
        found["log/journal.txt"] = journal[-TAIL_BYTES:]


def _redacted(report: Report, found: dict[str, Any], connect: Connect | None) -> dict[str, Any]:
    if connect:
        try:
            with connect(ASK_SECONDS) as client:
                clean: dict[str, Any] = client.call("log.redact", value=found)
            return clean
        except ControlFailure as failure:
            report.redacted = f"bloomd-ctl, in part by the form of secrets only, since {failure}"
    else:
        report.redacted = "bloomd-ctl, by the form of secrets only, since no daemon was there that knows them"
    report.by_daemon = False
    redaction = Redaction()
    return {
        name: redaction(value) if isinstance(value, str) else redaction.within(value, TEXT_LIMIT)
        for name, value in found.items()
    }


def _refuse_to_overwrite(path: str) -> None:
    if os.path.lexists(path):
        raise CannotWrite(f"{path} is there already, and nothing is overwritten: choose another name")


def _write(path: str, data: bytes) -> int:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        _refuse_to_overwrite(path)
        raise
    except OSError as error:
        raise CannotWrite(f"cannot make {path}: {error.strerror}") from error
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        os.unlink(path)
        raise CannotWrite(f"cannot write {path}: {error.strerror}") from error
    return len(data)
