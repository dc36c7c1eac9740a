"""Results: how the attempts of a task ended, as their workers said."""

import msgspec

from bloomd.runtime.database import Database
from bloomd.runtime.model import Result

# The output may be megabytes, and is the content of the artifact. (No character has less than one byte.)
LATEST = """
SELECT id, task_id, worker_id, artifact_id, status, error_message, metrics, completed_at,
       CASE WHEN %(output_bytes)s::integer > 0 THEN left(output, %(output_bytes)s::integer) END AS output,
       coalesce(octet_length(output) > %(output_bytes)s::integer, false) AS output_truncated
  FROM llm_results
 WHERE task_id = %(task_id)s
 ORDER BY completed_at DESC, id DESC
 LIMIT 1
"""


class LatestResult(Result, frozen=True, kw_only=True):
    """A result with as much of its output as was asked for."""

    output_truncated: bool
    """Whether there is more of the output: the artifact has it all."""


async def latest(database: Database, task_id: str, *, output_bytes: int = 0) -> LatestResult | None:
    """What the latest attempt that ended with a result said; None when there was none.

    Args:
        output_bytes: how much of its output to give, at the most, in UTF-8; nothing gives none at all.
    """
    found = await database.row(LatestResult, LATEST, task_id=task_id, output_bytes=output_bytes)
    if found is None or found.output is None:
        return found
    return msgspec.structs.replace(found, output=_cut(found.output, output_bytes))


def _cut(text: str, most_bytes: int) -> str:
    """The beginning of a text: whole characters."""
    return text.encode()[:most_bytes].decode(errors="ignore")
