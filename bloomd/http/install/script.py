"""The install script for one machine: the template with this server's address and the machine's code written into it.

Whatever is written in is quoted for the shell, and is data to it: it goes on into a file by Python, which quotes it for
YAML.
"""

import json
from pathlib import Path
from shlex import quote

import msgspec

from bloomd import __version__
from bloomd.http.install.package import REQUIREMENTS, WHEEL, files

_TEMPLATE = (Path(__file__).parent / "install.sh").read_text()
_MARK = "\t# @SETTINGS@\n"


class Machine(msgspec.Struct, frozen=True):
    """What is to become of a machine."""

    server: str
    """The URL by which it reaches this server."""
    worker: str
    code: str
    max_concurrency: int = 1
    labels: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Without the code: a traceback or a log may show this."""
        return f"Machine(server={self.server!r}, worker={self.worker!r}, code='****')"


def script(machine: Machine) -> str:
    """The script. Takes some dozen milliseconds the first time, for the program that it is to fetch.

    Raises:
        Misconfigured: the files of another version lie where this one was started from.
    """
    values = {
        "SERVER": machine.server,
        "WORKER": machine.worker,
        "CODE": machine.code,
        "VERSION": __version__,
        "WHEEL": WHEEL,
        "WHEEL_SHA256": files()[WHEEL].sha256,
        "REQUIREMENTS": REQUIREMENTS,
        "REQUIREMENTS_SHA256": files()[REQUIREMENTS].sha256,
        "MAX_CONCURRENCY": str(machine.max_concurrency),
        "LABELS": json.dumps(machine.labels),
    }
    before, after = _TEMPLATE.split(_MARK)
    return before + "".join(f"\t{name}={quote(value)}\n" for name, value in values.items()) + after
