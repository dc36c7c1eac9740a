"""Results: how the attempts of a task ended, as their workers said."""

from contextlib import suppress

import msgspec
import trio
from msgspec.structs import replace

from bloomd.errors import Unavailable
from bloomd.runtime import artifacts
from bloomd.runtime.artifacts import Elsewhere
from bloomd.runtime.database import Database
from bloomd.runtime.model import Result
from bloomd.runtime.refusals import NotFound

# Whoever looks at a task does not wait longer for its output than this.
PATIENCE_SECONDS = 2.0

# The output may be megabytes, and is usually the content of the artifact. (No character has less than one byte.)
LATEST = """
WITH latest AS (
    SELECT *
      FROM llm_results
     WHERE task_id = %(task_id)s
     ORDER BY completed_at DESC, id DESC
     LIMIT 1
)
SELECT latest.id, latest.task_id, latest.worker_id, artifact_id, status, error_message, metrics, completed_at,
       CASE WHEN %(output_bytes)s::integer > 0 THEN left(said.output, %(output_bytes)s::integer) END AS output,
       coalesce(said.bytes > %(output_bytes)s::integer, false) AS output_truncated,
       said.output IS NULL AND said.bytes IS NOT NULL AS elsewhere
  FROM latest
  LEFT JOIN runtime_artifacts ON output_shared AND runtime_artifacts.id = artifact_id,
       LATERAL (SELECT coalesce(latest.output, runtime_artifacts.content) AS output) AS whole,
       LATERAL (SELECT whole.output, coalesce(octet_length(whole.output), runtime_artifacts.size) AS bytes) AS said
"""


class LatestResult(Result, frozen=True, kw_only=True):
    """A result with as much of its output as was asked for."""

    output_truncated: bool
    """Whether there is more of the output: the artifact has it all."""


class _Latest(LatestResult, frozen=True, kw_only=True):
    elsewhere: bool
    """Whether the output is in the object store, with the content of the artifact."""


async def latest(
    database: Database, elsewhere: Elsewhere, task_id: str, *, output_bytes: int = 0
) -> LatestResult | None:
    """What the latest attempt that ended with a result said; None when there was none.

    Args:
        output_bytes: how much of its output to give, at the most, in UTF-8; nothing gives none at all, and so does an
            object store that is away.
    """
    found = await database.row(_Latest, LATEST, task_id=task_id, output_bytes=output_bytes)
    if found is None:
        return None
    output = found.output
    if found.elsewhere and output_bytes and found.artifact_id:
        output = await _beginning(database, elsewhere, found.artifact_id)
    latest = msgspec.convert(found, LatestResult, from_attributes=True)
    if output is None:
        return replace(latest, output_truncated=found.output_truncated or found.elsewhere)
    return replace(latest, output=_cut(output, output_bytes))


async def _beginning(database: Database, elsewhere: Elsewhere, artifact_id: str) -> str | None:
    with trio.move_on_after(PATIENCE_SECONDS), suppress(Unavailable, NotFound):
        content = await artifacts.content(database, elsewhere, artifact_id)
        return (await content.piece_at(0)).decode(errors="ignore")
    return None


def _cut(text: str, most_bytes: int) -> str:
    """The beginning of a text: whole characters."""
    return text.encode()[:most_bytes].decode(errors="ignore")
