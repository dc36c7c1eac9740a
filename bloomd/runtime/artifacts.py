"""Artifacts: what the workers produced."""

from bloomd.runtime.database import Database
from bloomd.runtime.model import Artifact
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import NotFound

ONE = """
SELECT * FROM runtime_artifacts WHERE id = %(id)s
"""

LIST = """
SELECT *
  FROM runtime_artifacts
 WHERE (created_at, id) < (%(at)s, %(before)s)
   AND (%(task_id)s::varchar IS NULL OR task_id = %(task_id)s)
 ORDER BY created_at DESC, id DESC
 LIMIT %(limit)s
"""


async def one(database: Database, id: str) -> Artifact:
    """One artifact, with its content where that is in the database.

    Raises:
        NotFound: there is none with this id.
    """
    if artifact := await database.row(Artifact, ONE, id=id):
        return artifact
    raise NotFound("Artifact not found")


async def listing(database: Database, page: Page, *, task_id: str | None = None) -> list[Artifact]:
    """A page of artifacts, newest first."""
    return await database.listing(Artifact, LIST, task_id=task_id, at=page.at, before=page.id, limit=page.limit)
