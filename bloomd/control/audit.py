"""The audit trail of what was done over the control socket, kept here while the database is away.

Whatever a client sent is only looked at, never trusted: no NUL, no endless name, and no key that somebody has typed in
the place of its name reaches the table.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
import trio

from bloomd.control.server import SUCCESS, Call, Method
from bloomd.errors import Unavailable
from bloomd.redaction import without_named_keys
from bloomd.runtime import audit
from bloomd.runtime.database import Database

log = structlog.stdlib.get_logger(__name__)

# More of them, while the database is away, are only in the log.
BACKLOG = 1000

# Longer is no name of ours, and an index entry has its limits.
SUBJECT_LIMIT = 128
DETAIL_LIMIT = 1000


class _Entry(msgspec.Struct, frozen=True):
    action: str
    subject: str
    actor: str
    detail: str


class ControlAudit:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._send, self._receive = trio.open_memory_channel[_Entry](BACKLOG)

    def called(self, call: Call, method: Method[Any], params: Mapping[str, Any], outcome: str) -> None:
        """Note a call that changes something, or tried to; unless the change itself has left its entry.

        What leaves an entry of its own may hold prompts and results: of that it is enough to say what it was about.
        """
        if method.leaves_trace:
            params = {"name": params["name"]} if "name" in params else {}
        told = msgspec.json.encode(params).decode() if params else ""
        log.info("control", method=method.name, user=call.user, outcome=outcome, params=told[:DETAIL_LIMIT])
        if method.leaves_trace and outcome == SUCCESS:
            return
        name = params.get("name")
        self.note(method.name, name if isinstance(name, str) else "", call.user, f"{outcome} {told}".strip())

    def note(self, method: str, subject: str, actor: str, detail: str) -> None:
        """Note anything else that was done to the daemon. Never waits."""
        entry = _Entry(
            f"control.{method}", _clean(subject, SUBJECT_LIMIT) or "bloomd", actor, _clean(detail, DETAIL_LIMIT)
        )
        try:
            self._send.send_nowait(entry)
        except trio.WouldBlock:
            log.warning("audit backlog full, the entry is only in this log", action=entry.action, user=actor)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what was noted, until cancelled.

        Raises:
            Unavailable: the database is away. What could not be written is kept.
        """
        task_status.started()
        async for entry in self._receive.clone():
            try:
                await audit.add(
                    self._database,
                    entry.action,
                    entity_type="daemon",
                    entity_id=entry.subject,
                    actor=entry.actor,
                    detail=entry.detail,
                )
            except Unavailable:
                self.note(entry.action.removeprefix("control."), entry.subject, entry.actor, entry.detail)
                raise


def _clean(text: str, limit: int) -> str:
    return without_named_keys(text.replace("\x00", "").replace("\\u0000", ""))[:limit]
