"""Artifacts: what the workers produced.

Content is text in the row, or lies in pieces (`uploads.py`), or in the object store, as `url` says (`objects.py`).
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from bloomd.runtime.database import Database
from bloomd.runtime.model import Artifact
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import NotFound

ONE = """
SELECT * FROM runtime_artifacts WHERE id = %(id)s
"""

# What a list shows of content: the answers of a language model, as they usually are, and no megabytes.
LISTED_BYTES = 16384

LIST = """
SELECT id, task_id, job_id, type, created_at, finalized, url, entity_refs, tags,
       CASE WHEN octet_length(content) <= %(listed_bytes)s THEN content END AS content,
       size, sha256, name, content_type, lease_id
  FROM runtime_artifacts
 WHERE (created_at, id) < (%(at)s, %(before)s)
   AND (%(task_id)s::varchar IS NULL OR task_id = %(task_id)s)
 ORDER BY created_at DESC, id DESC
 LIMIT %(limit)s
"""


# The piece in which a byte is.
PIECE = """
SELECT starts_at, data
  FROM artifact_pieces
 WHERE artifact_id = %(id)s AND starts_at <= %(at)s
 ORDER BY starts_at DESC
 LIMIT 1
"""


# What a content is of which nobody said it; and that of a completion's.
BINARY, TEXT = "application/octet-stream", "text/plain; charset=utf-8"


class Held(msgspec.Struct, frozen=True):
    """What another store says of a content."""

    size: int
    content_type: str | None


class Elsewhere(Protocol):
    """The store of what is not in the database; what it does not have is NotFound."""

    async def stat(self, url: str) -> Held: ...

    async def read(self, url: str, at: int) -> bytes: ...


class Content(msgspec.Struct, frozen=True):
    """What an artifact holds, and how to read it."""

    size: int
    sha256: str | None
    """None for what the Node.js runtime has put into the object store."""
    content_type: str
    piece_at: Callable[[int], Awaitable[bytes]]
    """Some bytes, from this one on; NotFound when they are gone."""


class _Piece(msgspec.Struct, frozen=True):
    starts_at: int
    data: bytes


async def one(database: Database, id: str) -> Artifact:
    """One artifact, with its content where that is text in its row.

    Raises:
        NotFound: there is none with this id.
    """
    if artifact := await database.row(Artifact, ONE, id=id):
        return artifact
    raise NotFound("Artifact not found")


async def listing(database: Database, page: Page, *, task_id: str | None = None) -> list[Artifact]:
    """A page of artifacts, newest first. Of content only what is short."""
    return await database.listing(
        Artifact, LIST, task_id=task_id, at=page.at, before=page.id, limit=page.limit, listed_bytes=LISTED_BYTES
    )


async def content(database: Database, elsewhere: Elsewhere, id: str) -> Content:
    """The content of an artifact, wherever it is kept.

    Raises:
        NotFound: there is no such artifact, or no content of it.
        Unavailable: it is in the object store, which cannot be asked.
    """
    artifact = await one(database, id)
    if artifact.content is not None:
        return _of_text(artifact.content.encode(), artifact)
    if artifact.url is not None:
        return await _of_object(elsewhere, artifact.url, artifact)
    if artifact.size is None:
        raise _gone()

    async def piece_at(at: int) -> bytes:
        piece = await database.binary_row(_Piece, PIECE, id=id, at=at)
        if piece is None or at >= piece.starts_at + len(piece.data):
            # The object store may have it since it was asked where it is.
            if url := (await one(database, id)).url:
                return await elsewhere.read(url, at)
            raise _gone()
        return piece.data[at - piece.starts_at :]

    return Content(artifact.size, artifact.sha256, artifact.content_type or BINARY, piece_at)


def _of_text(text: bytes, artifact: Artifact) -> Content:
    async def piece_at(at: int) -> bytes:
        return text[at:]

    sha256 = artifact.sha256 or hashlib.sha256(text).hexdigest()
    return Content(len(text), sha256, artifact.content_type or TEXT, piece_at)


async def _of_object(elsewhere: Elsewhere, url: str, artifact: Artifact) -> Content:
    async def piece_at(at: int) -> bytes:
        return await elsewhere.read(url, at)

    if artifact.size is None:
        held = await elsewhere.stat(url)
        return Content(held.size, None, held.content_type or BINARY, piece_at)
    return Content(artifact.size, artifact.sha256, artifact.content_type or TEXT, piece_at)


def _gone() -> NotFound:
    return NotFound("This artifact has no content")
