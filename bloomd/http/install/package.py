"""The program of a worker, for machines that get it from this server: a wheel of what the server itself runs from.

It is made in memory, of the files of the package and of nothing else, and the same files make the same bytes on every
node. What it imports comes from the package index that the machine is set up for; `requirements.lock` pins it by hash.
"""

import hashlib
import zipfile
from base64 import urlsafe_b64encode
from functools import cache
from io import BytesIO
from pathlib import Path

import msgspec

import bloomd
from bloomd import __version__
from bloomd.errors import Misconfigured

SOURCES = Path(bloomd.__file__).parent

WHEEL = f"bloomd-{__version__}-py3-none-any.whl"
REQUIREMENTS = "requirements.txt"

# Whatever else lies beside the sources is no part of the program, and nobody else's business.
SUFFIXES = frozenset({".py", ".sql", ".sh", ".lock"})

_INFO = f"bloomd-{__version__}.dist-info"

_METADATA = {
    "METADATA": f"Metadata-Version: 2.1\nName: bloomd\nVersion: {__version__}\nRequires-Python: >=3.11\n",
    "WHEEL": "Wheel-Version: 1.0\nGenerator: bloomd\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "entry_points.txt": "[console_scripts]\nbloomd = bloomd.cli:main\n",
}


class File(msgspec.Struct, frozen=True):
    """Something to be fetched."""

    content: bytes
    media_type: str
    sha256: str


@cache
def files() -> dict[str, File]:
    """All there is to fetch, by name. Takes some dozen milliseconds the first time.

    Raises:
        Misconfigured: the files of another version lie where this one was started from.
    """
    return {
        WHEEL: _file(_wheel(), "application/zip"),
        REQUIREMENTS: _file((SOURCES / "http/install/requirements.lock").read_bytes(), "text/plain"),
    }


def _file(content: bytes, media_type: str) -> File:
    return File(content, media_type, hashlib.sha256(content).hexdigest())


def _wheel() -> bytes:
    members = {f"bloomd/{path.relative_to(SOURCES)}": path.read_bytes() for path in _sources()}
    if f'__version__ = "{__version__}"'.encode() not in members["bloomd/__init__.py"]:
        raise Misconfigured(f"bloomd {__version__} runs, but another version is installed by now: restart the daemon")
    members |= {f"{_INFO}/{name}": text.encode() for name, text in _METADATA.items()}
    record = "".join(f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in members.items())
    members[f"{_INFO}/RECORD"] = f"{record}{_INFO}/RECORD,,\n".encode()
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name)  # of 1980: a time would make each node's bytes different
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _sources() -> list[Path]:
    return sorted(path for path in SOURCES.rglob("*") if path.suffix in SUFFIXES and path.is_file())


def _digest(content: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
