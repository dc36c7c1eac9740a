"""The archive as a file: who may read it, what becomes of it when it is not finished, and what is not believed."""

import io
import os
import stat
import tarfile
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from bloomd.backup.archive import DUMP, FORMAT, HEAD, MANIFEST, WARNING, BadArchive, Head, read, writing
from bloomd.errors import Misconfigured

SAID = Head(
    format=FORMAT,
    warning=WARNING,
    bloomd="1",
    schema=20,
    server="15.1",
    pg_dump=15,
    made_at="2026-02-25T03:30:00+00:00",
    host="here",
    holds=[],
)
CONTENT = os.urandom(3 << 20)  # several chunks, and no whole number of blocks
CONTENT += b"odd"


def made(at: Path, *, head: Head = SAID, force: bool = False) -> Path:
    with writing(at, force=force) as writer:
        writer.add(HEAD, msgspec.json.encode(head))
        writer.begin(DUMP)
        for start in range(0, len(CONTENT), 1 << 16):
            writer.write(CONTENT[start : start + (1 << 16)])
        writer.end()
        writer.add("configuration/1-bloomd.yaml", b"http: {}\n")
        configuration = {"configuration/1-bloomd.yaml": "/etc/bloomd.yaml"}
        writer.seal(rows={"public.workers": 2}, configuration=configuration, missing={}, damaged={})
    return at


def believed(data: bytes, at: Path) -> None:
    at.write_bytes(data)
    with at.open("rb") as file:
        read(file, passed=lambda _: None)


def repacked(archive: Path, change) -> bytes:
    """The same members, after `change` had each of them: it gives what is to stand in its place."""
    out = io.BytesIO()
    with tarfile.open(archive) as old, tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as new:
        for member in old:
            content = old.extractfile(member)
            assert content
            for info, data in change(member, content.read()):
                info.size = len(data)
                new.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return made(tmp_path / "b.tar")


def test_what_was_written_is_read(archive: Path) -> None:
    passed: list[int] = []
    with archive.open("rb") as file:
        found = read(file, passed=passed.append)
        assert b"".join(found.chunks(DUMP)) == CONTENT
        assert b"".join(found.chunks("configuration/1-bloomd.yaml")) == b"http: {}\n"
    assert found.head == SAID
    assert found.manifest.rows == {"public.workers": 2}
    assert found.manifest.configuration == {"configuration/1-bloomd.yaml": "/etc/bloomd.yaml"}
    assert sum(passed) > len(CONTENT)


def test_any_tar_lists_it(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        assert tar.getnames() == [HEAD, DUMP, "configuration/1-bloomd.yaml", MANIFEST]


def test_only_its_owner_reads_it_also_while_it_is_written(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with writing(tmp_path / "b.tar", force=False) as writer:
            [part] = tmp_path.iterdir()
            assert stat.S_IMODE(part.stat().st_mode) == 0o600
            writer.seal(rows={}, configuration={}, missing={}, damaged={})
        assert stat.S_IMODE((tmp_path / "b.tar").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_an_existing_file_is_refused_and_replaced_only_when_forced(archive: Path) -> None:
    archive.write_bytes(b"precious")
    with pytest.raises(Misconfigured, match="is there already"):
        made(archive)
    assert archive.read_bytes() == b"precious"
    made(archive, force=True)
    assert archive.stat().st_size > len(CONTENT)


@pytest.mark.parametrize("name", ["b.tar", "b.tar.part"])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    (tmp_path / name).symlink_to(other)
    with pytest.raises(Misconfigured):
        made(tmp_path / "b.tar")
    assert other.read_bytes() == b"precious"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_unfinished_one_is_removed_and_leaves_the_old_one(archive: Path, error: type[BaseException]) -> None:
    old = archive.read_bytes()
    with pytest.raises(error), writing(archive, force=True) as writer:
        writer.add(HEAD, b"{}")
        raise error
    assert list(archive.parent.iterdir()) == [archive]
    assert archive.read_bytes() == old


@pytest.mark.parametrize("length", [0, 1, 511, 512, 700, 1024, 100_000, -20_000, -1024 - 512, -3000])
def test_a_truncated_one_is_refused(archive: Path, tmp_path: Path, length: int) -> None:
    data = archive.read_bytes()
    with pytest.raises(BadArchive):
        believed(data[:length], tmp_path / "cut.tar")


def test_every_flipped_bit_is_seen(archive: Path, tmp_path: Path) -> None:
    data = archive.read_bytes()
    with tarfile.open(archive) as tar:
        contents = [(member.offset_data, member.size) for member in tar]
    for start, size in contents:
        for at in {start, start + size // 2, start + size - 1}:
            for bit in (0, 5):
                altered = bytearray(data)
                altered[at] ^= 1 << bit
                with pytest.raises(BadArchive):
                    believed(altered, tmp_path / "altered.tar")


def test_whatever_byte_is_altered_is_refused_or_means_nothing(tmp_path: Path) -> None:
    """Padding and times mean nothing; a letter that is none, or a header of another kind, is no crash."""
    with writing(tmp_path / "b.tar", force=False) as writer:
        writer.add(HEAD, msgspec.json.encode(SAID))
        writer.add(DUMP, b"dump")
        writer.seal(rows={"public.workers": 2}, configuration={}, missing={}, damaged={})
    data = (tmp_path / "b.tar").read_bytes()
    for at in range(0, len(data) - 1024, 3):
        for bit in (0, 4, 7):
            altered = bytearray(data)
            altered[at] ^= 1 << bit
            with suppress(BadArchive):
                believed(altered, tmp_path / "altered.tar")


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, b"PGDMP" + bytes(2000)])
def test_what_is_no_tar_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadArchive):
        believed(data, tmp_path / "foreign.tar")


def test_a_foreign_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "foreign.tar", "w") as tar:
        tar.add(__file__, arcname="holiday.jpg")
    with pytest.raises(BadArchive, match="no backup of bloomd"):
        believed((tmp_path / "foreign.tar").read_bytes(), tmp_path / "foreign.tar")


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/passwd", "configuration/../../evil", "configuration/1-..", "configuration/1-a/b", "x", DUMP],
)
def test_a_member_that_no_backup_has_is_refused(archive: Path, tmp_path: Path, name: str) -> None:
    def change(member: tarfile.TarInfo, data: bytes):
        yield member, data
        if member.name == DUMP:
            yield tarfile.TarInfo(name), b"evil"

    with pytest.raises(BadArchive):
        believed(repacked(archive, change), tmp_path / "evil.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_what_is_no_regular_file_is_refused(archive: Path, tmp_path: Path, kind: bytes) -> None:
    def change(member: tarfile.TarInfo, data: bytes):
        if member.name.startswith("configuration/"):
            member.type, member.linkname, data = kind, "/etc/passwd", b""
        yield member, data

    with pytest.raises(BadArchive, match="other than a file"):
        believed(repacked(archive, change), tmp_path / "evil.tar")


def test_a_member_that_is_missing_is_named(archive: Path, tmp_path: Path) -> None:
    def change(member: tarfile.TarInfo, data: bytes):
        if member.name != DUMP:
            yield member, data

    with pytest.raises(BadArchive, match=r"lacks database\.dump"):
        believed(repacked(archive, change), tmp_path / "less.tar")


def test_another_format_is_refused(tmp_path: Path) -> None:
    newer = made(tmp_path / "newer.tar", head=msgspec.structs.replace(SAID, format=2))
    with pytest.raises(BadArchive, match="has format 2"):
        believed(newer.read_bytes(), tmp_path / "newer.tar")
