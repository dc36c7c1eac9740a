"""The archive: an uncompressed tar (the dump in it is compressed) that says what it is, and whether it is whole.

    bloomd-backup.json     what this is
    database.dump          pg_dump's custom format
    objects/BUCKET/KEY     what the database refers to in the object store
    memory/KEY             the bucket of the agents' memory, if it was asked for
    configuration/N-NAME   files of the configuration
    manifest.json          size and sha256 of each of those, and how many rows each table has

The manifest comes last: an archive without one was cut off. It carries its own sha256.
"""

import hashlib
import os
import re
import tarfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote

import msgspec

from bloomd.errors import Misconfigured, Unavailable

FORMAT = 1
HEAD, DUMP, MANIFEST = "bloomd-backup.json", "database.dump", "manifest.json"
OBJECTS, MEMORY, CONFIGURATION = "objects", "memory", "configuration"
WARNING = "This archive holds secrets: whoever reads it can do what the runtime can."

CHUNK = 1 << 20
# Of head and manifest, which are read into memory at once. A manifest for five million objects has it.
LONGEST_JSON = 1 << 30

_NAMES = re.compile(
    r"bloomd-backup\.json|database\.dump|(objects|memory)/[^\0]+|configuration/\d+-[^/\0]+|manifest\.json"
)


# What msgspec says of JSON that is none.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class BadArchive(Exception):
    """The file is no archive of ours, or not whole. Nothing was changed."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What the archive is, for whoever looks into it first."""

    format: int
    warning: str
    bloomd: str
    schema: int
    """The version of the database's schema; 0 is that of the Node.js runtime."""
    server: str
    pg_dump: int
    """Its major version. An older pg_restore does not read the dump."""
    made_at: str
    host: str
    holds: list[str]
    """Which of "objects" and "memory" are in it, beside the database and the configuration."""


class Member(msgspec.Struct, frozen=True):
    size: int
    sha256: str
    content_type: str | None = None
    """Of an object."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    members: dict[str, Member]
    rows: dict[str, int]
    """How many each table has, by schema and name."""
    configuration: dict[str, str]
    """Where each file of the configuration was."""
    missing: dict[str, str]
    """Objects that the database refers to and the store did not have, by url; and why they are not here."""
    damaged: dict[str, str]
    """Those that are here as the store had them, which is not as the database describes them."""


class _Sealed(msgspec.Struct):
    manifest: msgspec.Raw
    sha256: str


class Writer:
    """Writes an archive beside its place, and moves it there when it is whole. Blocks."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.members: dict[str, Member] = {}
        self._name, self._start, self._size, self._digest = "", 0, 0, hashlib.sha256()

    def begin(self, name: str) -> None:
        """What is written from now on is this member."""
        self._name, self._start, self._size, self._digest = name, self._file.tell(), 0, hashlib.sha256()
        self._file.write(_header(name, 0))

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def drop(self) -> None:
        """Leave out this member after all."""
        self._file.seek(self._start)
        self._file.truncate()

    def end(self, content_type: str | None = None) -> Member:
        """Its size is known only now: its header is written once more."""
        self._file.write(bytes(-self._size % tarfile.BLOCKSIZE))
        end = self._file.tell()
        self._file.seek(self._start)
        self._file.write(_header(self._name, self._size))
        self._file.seek(end)
        member = self.members[self._name] = Member(self._size, self._digest.hexdigest(), content_type)
        return member

    def add(self, name: str, data: bytes) -> None:
        self.begin(name)
        self.write(data)
        self.end()

    def seal(
        self, *, rows: dict[str, int], configuration: dict[str, str], missing: dict[str, str], damaged: dict[str, str]
    ) -> Manifest:
        """Write the manifest and the end of the archive, and have all of it on the disk, which takes its time."""
        manifest = Manifest(
            members=dict(self.members), rows=rows, configuration=configuration, missing=missing, damaged=damaged
        )
        encoded = msgspec.json.encode(manifest)
        if len(encoded) > LONGEST_JSON - 1024:
            raise Unavailable("there are too many objects for one archive: back them up with tools of the object store")
        sealed = _Sealed(msgspec.Raw(encoded), hashlib.sha256(encoded).hexdigest())
        self.add(MANIFEST, msgspec.json.encode(sealed))
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        return manifest


@contextmanager
def writing(target: Path, *, force: bool) -> Generator[Writer]:
    """An archive that is at its place after the block, whole and on the disk; or nothing of it, if the block raises.

    Raises:
        Misconfigured: there is such a file already, and no `force`; or one that another backup is writing.
        Unavailable: it cannot be written.
    """
    part = target.with_name(target.name + ".part")
    if target.is_dir():
        raise Misconfigured(f"{target} is a directory: name a file in it")
    if not force and os.path.lexists(target):
        raise Misconfigured(f"{target} is there already: name another file, or say --force")
    try:
        # Neither a file that is there nor a link is followed.
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise Misconfigured(f"{part} is there: a backup is being made, or was killed; then remove it") from error
    except OSError as error:
        raise Unavailable(f"{part}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield Writer(file)
        part.replace(target)
        _sync(target.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise Unavailable(f"{target}: {error.strerror}") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class Archive:
    """An archive that was found whole: what it says, and its contents by name. Blocks."""

    def __init__(self, file: BinaryIO, head: Head, manifest: Manifest, places: dict[str, int]) -> None:
        self._file = file
        self.head = head
        self.manifest = manifest
        self._places = places

    def piece(self, name: str, at: int) -> bytes:
        """Bytes of a member from this place on; none at its end."""
        rest = self.manifest.members[name].size - at
        data = os.pread(self._file.fileno(), min(CHUNK, rest), self._places[name] + at)
        if rest and not data:
            raise BadArchive("the archive has become shorter")
        return data

    def chunks(self, name: str) -> Iterator[bytes]:
        """A member's content."""
        at = 0
        while data := self.piece(name, at):
            yield data
            at += len(data)

    def size_of(self, names: Iterable[str]) -> int:
        """The bytes of these members."""
        return sum(self.manifest.members[name].size for name in names)

    def within(self, folder: str) -> list[str]:
        """The members of a folder."""
        return [name for name in self.manifest.members if name.startswith(f"{folder}/")]


def member_of(folder: str, key: str) -> str:
    """The name under which an object is in the archive: its key, with what no path may have encoded as in a URL."""
    if {"", ".", ".."} & set(key.split("/")):
        return f"{folder}/{quote(key, safe='').replace('.', '%2E')}"
    return f"{folder}/{quote(key)}"


def key_of(member: str) -> str:
    """The key of the object that is a member."""
    return unquote(member.partition("/")[2])


@contextmanager
def opened(path: Path) -> Generator[BinaryIO]:
    """The file, to be read.

    Raises:
        Misconfigured: it cannot be.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise Misconfigured(f"{path}: {error.strerror}") from error
    with file:
        yield file


def read(file: BinaryIO, *, passed: Callable[[int], None]) -> Archive:
    """Read an archive from its beginning to its end, and believe it only then.

    Args:
        passed: told how many bytes more were read, every now and then.

    Raises:
        BadArchive: the text says what is wrong.
    """
    found: dict[str, Member] = {}
    places: dict[str, int] = {}
    kept: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            for member in tar:
                name = member.name
                _refuse_strange(member, first=not found, seen=name in found or MANIFEST in found)
                content = tar.extractfile(member)
                assert content is not None  # a regular file
                digest, keep = hashlib.sha256(), bytearray()
                while data := content.read(CHUNK):
                    digest.update(data)
                    if name in (HEAD, MANIFEST):
                        keep += data
                    passed(len(data))
                found[name], places[name] = Member(member.size, digest.hexdigest()), member.offset_data
                kept[name] = bytes(keep)
    except (tarfile.TarError, ValueError) as error:  # tarfile trips over some headers with a ValueError
        if not found:
            raise BadArchive(f"this is no backup of bloomd: {_other_kind(file)}") from error
        raise BadArchive(f"the archive is cut off or damaged: {error}") from error
    if MANIFEST not in found:
        raise BadArchive("the archive is cut off: it has no manifest at its end")
    manifest = _manifest(kept[MANIFEST])
    del found[MANIFEST]
    _compare(found, manifest.members)
    return Archive(file, _head(kept[HEAD]), manifest, places)


def _other_kind(file: BinaryIO) -> str:
    """What it is instead, and what to do with it."""
    file.seek(0)
    start = file.read(512)
    if start.startswith(b"PGDMP"):
        return (
            "a dump in a format of pg_dump's own; `pg_restore -f dump.sql FILE` makes a plain one of it, which will do"
        )
    if start.startswith(b"\x1f\x8b"):
        return "it is compressed; gunzip it first"
    if b"-- PostgreSQL database cluster dump" in start:
        return "a dump of a whole cluster; have pg_dump make one of the database"
    return "not a tar archive"


def _refuse_strange(member: tarfile.TarInfo, *, first: bool, seen: bool) -> None:
    name = member.name
    if first and name != HEAD:
        raise BadArchive(f"this is no backup of bloomd: it does not begin with {HEAD}")
    if member.type != tarfile.REGTYPE or member.issparse():
        raise BadArchive(f"the archive has something other than a file: {name!r}")
    if not _NAMES.fullmatch(name) or {"", ".", ".."} & set(name.split("/")):
        raise BadArchive(f"the archive has a member that no backup has: {name!r}")
    if seen:
        raise BadArchive(f"the archive has a member too many: {name!r}")
    if name in (HEAD, MANIFEST) and member.size > LONGEST_JSON:
        raise BadArchive(f"{name} is too long")


def _head(data: bytes) -> Head:
    try:
        told = msgspec.json.decode(data, type=dict[str, object]).get("format")
        if told != FORMAT:
            raise BadArchive(f"the archive has format {told!r}, this bloomd reads {FORMAT}")
        return msgspec.json.decode(data, type=Head)
    except UNREADABLE as error:
        raise BadArchive(f"{HEAD} is damaged") from error


def _manifest(data: bytes) -> Manifest:
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        encoded = bytes(sealed.manifest)
        if hashlib.sha256(encoded).hexdigest() != sealed.sha256:
            raise BadArchive(f"{MANIFEST} is damaged: its sha256 differs")
        return msgspec.json.decode(encoded, type=Manifest)
    except UNREADABLE as error:
        raise BadArchive(f"{MANIFEST} is damaged") from error


def _compare(found: dict[str, Member], told: dict[str, Member]) -> None:
    for name in sorted(found.keys() | told.keys() | {DUMP}):
        if name not in found:
            raise BadArchive(f"the archive lacks {name}")
        if name not in told:
            raise BadArchive(f"the manifest does not know {name}")
        if (found[name].size, found[name].sha256) != (told[name].size, told[name].sha256):
            raise BadArchive(f"{name} is damaged: its size or sha256 differs from the manifest")


def _header(name: str, size: int) -> bytes:
    """As long whatever the size is: the GNU format has room for any."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(time.time())
    return member.tobuf(tarfile.GNU_FORMAT, encoding="utf-8")


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
