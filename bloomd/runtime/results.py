"""Results: how the attempts of a task ended, as their workers said."""

from bloomd.runtime.database import Database
from bloomd.runtime.model import Result

# The output may be megabytes, and is the content of the artifact.
LATEST = """
SELECT id, task_id, worker_id, artifact_id, status, NULL AS output, error_message, metrics, completed_at
  FROM llm_results
 WHERE task_id = %(task_id)s
 ORDER BY completed_at DESC, id DESC
 LIMIT 1
"""


async def latest(database: Database, task_id: str) -> Result | None:
    """What the latest attempt that ended with a result said, without its output; None when there was none."""
    return await database.row(Result, LATEST, task_id=task_id)
