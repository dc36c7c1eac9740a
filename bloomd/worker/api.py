"""The worker's calls to its server: the boundary where HTTP becomes an answer, or one of four kinds of trouble.

- `Unavailable`: the server is away, or has trouble of its own. It may come back; whoever asked tries again.
- `LeaseLost`: the lease is not this worker's any more, or its task was cancelled. The work on it ends.
- `Unknown`: the server does not know this worker. It registers again.
- `Refused`: the server says no, and would say so again.
"""

from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from bloomd.errors import Unavailable
from bloomd.exchange import MIB, Answer, exchange

# Answers to what is asked here are small, but for claims: those hold prompts.
ANSWER_LIMIT = 1 * MIB
CLAIM_LIMIT = 256 * MIB

TIMEOUT = 10.0
UPLOAD_TIMEOUT = 300.0

# What a long poll may take beyond the time that it asked for: the server's own work, and the prompts on their way.
POLL_MARGIN = 20.0

# The server is busy, or somebody between is: not a word about what was asked.
_AWAY = (408, 425, 429)

# The name under its lease of an output that is uploaded; `result` is kept for what a completion makes.
OUTPUT = "output"

T = TypeVar("T")


class LeaseLost(Exception):
    """The lease is not this worker's any more. The text is the server's reason."""


class Unknown(Exception):
    """The server does not know this worker."""


class Refused(Exception):
    """The server will not have it."""

    def __init__(self, status: int, text: str, type: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.not_found = type.endswith(":not-found")
        """Whether what was named is not there; a path that is not there is another matter."""


class Policy(msgspec.Struct, frozen=True):
    timeout_sec: int = 120
    budget: float = 0
    """Tokens; 0 is no limit."""


class Task(msgspec.Struct, frozen=True):
    """What a worker reads of a task."""

    id: str
    prompt: str
    context_id: str = ""
    context_hints: list[str] = []
    policy: Policy = Policy()
    desired_format: str = "text"


class Lease(msgspec.Struct, frozen=True):
    """What a worker reads of a lease. The times are the server's."""

    id: str
    started_at: int
    ttl_seconds: int
    attempt: int | None = None
    deadline_at: int | None = None


class Work(msgspec.Struct, frozen=True):
    """One task, leased to this worker."""

    lease: Lease
    task: Task
    holds_conversation: bool = True
    """Whether the conversation of the task's context is still this worker's. It is when the server does not say."""


class _Claimed(msgspec.Struct, frozen=True):
    leases: list[Work]


class _Outcome(msgspec.Struct, frozen=True):
    ok: bool
    status: int | None = None
    type: str | None = None
    error: str | None = None
    task_status: str | None = None


class _Uploaded(msgspec.Struct, frozen=True):
    id: str


class _Problem(msgspec.Struct, frozen=True):
    error: str = ""
    type: str = ""


class Server:
    """A bloomd, as one of its workers sees it."""

    def __init__(self, url: str, worker: str, token: str | None) -> None:
        self.url = url
        self._worker = worker
        self._headers = {"X-Runtime-API-Key": token} if token else {}
        self.who = f"bloomd at {url}"

    async def register(self, **said: Any) -> None:
        """Make this worker known, or bring what is known of it up to date."""
        await self._post("workers", {"name": self._worker, **said})

    async def claim(self, max: int, *, wait_seconds: float, ttl_seconds: int) -> list[Work]:
        """Up to `max` tasks; none when there was nothing within the time.

        Raises:
            Unknown: this worker has to register.
        """
        asked = {"worker_id": self._worker, "max": max, "wait_seconds": wait_seconds, "ttl_seconds": ttl_seconds}
        timeout = wait_seconds + POLL_MARGIN
        try:
            answer = await self._post("leases/claim", asked, timeout=timeout, limit=CLAIM_LIMIT)
        except Refused as refused:
            if refused.not_found:
                raise Unknown(str(refused)) from refused
            raise
        return self._read(answer, _Claimed).leases

    async def heartbeat(self, lease: str, progress: str | None) -> None:
        """Prolong a lease by its time.

        Raises:
            LeaseLost: it is over, or the task was cancelled.
        """
        await self._of_lease("leases/heartbeat", lease, {"progress": progress})

    async def complete(self, lease: str, said: dict[str, Any]) -> str:
        """End an attempt; the status of its task. Saying it again does no harm.

        Raises:
            LeaseLost: the lease was over before.
        """
        return (await self._of_lease("leases/complete", lease, said)).task_status or ""

    async def release(self, lease: str, reason: str) -> None:
        """Give a task back.

        Raises:
            LeaseLost: the lease was over before.
        """
        await self._of_lease("leases/release", lease, {"reason": reason[:1000]}, names_worker=False)

    async def upload(self, lease: str, content: bytes, *, type: str, tags: list[str]) -> str:
        """Keep the result of an attempt under its lease; the id of the artifact.

        Raises:
            LeaseLost: the lease is over.
        """
        query = "&".join([f"type={quote(type, safe='')}", *(f"tag={quote(tag, safe='')}" for tag in tags)])
        try:
            answer = await self._exchange(
                "PUT",
                f"leases/{quote(lease, safe='')}/artifacts/{OUTPUT}?{query}",
                content,
                content_type="text/plain; charset=utf-8",
                timeout=UPLOAD_TIMEOUT,
            )
        except Refused as refused:
            raise _lost(refused) from refused
        return self._read(answer, _Uploaded).id

    async def _of_lease(self, path: str, lease: str, said: dict[str, Any], *, names_worker: bool = True) -> _Outcome:
        """One of the calls that take many, with one: their answers are short."""
        by = {"worker_id": self._worker} if names_worker else {}
        answer = await self._post(path, [{"lease_id": lease, **by, **said}])
        outcomes = self._read(answer, list[_Outcome])
        if len(outcomes) != 1:
            raise Unavailable(f"{self.who}: {len(outcomes)} outcomes for one lease")
        [outcome] = outcomes
        if not outcome.ok:
            if outcome.type and outcome.type.endswith(":conflict"):
                raise Unavailable(f"{self.who}: {outcome.error}")  # the task is changing hands too quickly
            raise _lost(self._trouble(outcome.status or 500, outcome.error or "no reason given", outcome.type or ""))
        return outcome

    async def _post(self, path: str, body: Any, *, timeout: float = TIMEOUT, limit: int = ANSWER_LIMIT) -> Answer:
        return await self._exchange("POST", path, msgspec.json.encode(body), timeout=timeout, limit=limit)

    async def _exchange(
        self,
        method: str,
        path: str,
        content: bytes,
        *,
        content_type: str = "application/json",
        timeout: float,
        limit: int = ANSWER_LIMIT,
    ) -> Answer:
        answer = await exchange(
            method,
            f"{self.url}/api/runtime/{path}",
            who=self.who,
            timeout=timeout,
            limit=limit,
            headers={**self._headers, "Content-Type": content_type},
            content=content,
        )
        if 200 <= answer.status < 300:
            return answer
        if 300 <= answer.status < 400:
            where = f" to {answer.location}" if answer.location else ""
            raise Refused(answer.status, f"it redirects{where}: name the URL of bloomd itself in `worker.server`")
        try:
            said = msgspec.json.decode(answer.body, type=_Problem)
        except msgspec.MsgspecError:
            said = _Problem()
        raise self._trouble(answer.status, said.error or f"it answered {answer.status}", said.type)

    def _trouble(self, status: int, text: str, type: str) -> Exception:
        if status >= 500 or status in _AWAY:
            return Unavailable(f"{self.who}: {text}")
        if type.endswith((":lease-lost", ":cancelled")):
            return LeaseLost(text)
        return Refused(status, text, type)

    def _read(self, answer: Answer, type: type[T]) -> T:
        try:
            return msgspec.json.decode(answer.body, type=type)
        except msgspec.MsgspecError as error:
            raise Unavailable(f"{self.who}: its answer is not one of bloomd's") from error


def _lost(trouble: Exception) -> Exception:
    """What trouble with a lease means: one that the server does not know is lost."""
    return LeaseLost(str(trouble)) if isinstance(trouble, Refused) and trouble.not_found else trouble
