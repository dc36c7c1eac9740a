"""What becomes of tasks, leases and workers, in plain Python: the rules of the queue as the contract tells them.

Nothing here waits, and nobody interrupts: one change after the other, at a time that stands still (`Model.now`). What
the server chooses freely (ids, how long a retry waits within its bounds) is taken over from its answers.

Times are in epoch milliseconds.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lifecycle_objects import Chosen, Ending, Json, Lease, Task, Worker

ACTOR = "api-key"
RETRY_MS, RETRY_MAX_MS = 5_000, 300_000
OFFLINE_MS = 60_000
ASKS_MS = 60_000
PRECISION_MS = 1_000
GRACE_MS = 30_000

UNDER_WAY = ("leased", "running")
ENDED_BADLY = ("failed", "dead", "cancelled")

NOT_FOUND = (404, "not-found")
CONFLICT = (409, "conflict")
LEASE_LOST = (409, "lease-lost")
CANCELLED = (409, "cancelled")
NO_WORKER = (503, "no-worker")
INVALID = (400, "invalid")


class Refused(Exception):
    """The rules say no: a status of HTTP, and the last word of the problem's type."""

    def __init__(self, how: tuple[int, str]) -> None:
        super().__init__(*how)
        self.how = how


class Model:
    def __init__(self, now: int) -> None:
        self.now = now
        self.tasks: dict[str, Task] = {}
        self.leases: dict[str, Lease] = {}
        self.workers: dict[str, Worker] = {}
        self.endings: dict[str, Ending] = {}
        self.conversations: dict[str, str] = {}
        """The worker that completed the latest task of a context, among those that keep sessions."""
        self.serial: set[str] = set()
        """Leases of such workers."""
        self.paused, self.until, self.reason = False, None, None
        self.audit: Counter[tuple[str, str, str, str]] = Counter()
        """Entries that are to be written since somebody has looked: action, type and id of the entity, actor."""

    # Tasks.

    def create(self, asked: Sequence[Json], ids: Sequence[str]) -> tuple[list[Task], bool]:
        """The tasks, and whether any of them is new. `ids` are those of the answer."""
        found: list[Task] = []
        anything_new = False
        for body, id in zip(asked, ids, strict=True):
            key = body.get("idempotency_key")
            task = next((task for task in self.tasks.values() if key and task.idempotency_key == key), None)
            if task is None:
                assert id not in self.tasks, f"the id {id} was given twice"
                task = self.tasks[id] = Task(id, self.now, self.now, **body)
                task.ready = (task.not_before or 0) <= self.now
                self._note("task.created", "task", id)
                anything_new = True
            found.append(task)
        return found, anything_new

    def requeue(self, task_id: str) -> Task:
        task = self.task(task_id)
        if not self._can_be_requeued(task):
            raise Refused(CONFLICT)
        self._note("task.requeued", "task", task.id)
        return self._as_new(task)

    def cancel(self, task_id: str) -> Task:
        task = self.task(task_id)
        if not self._can_be_cancelled(task):
            raise Refused(CONFLICT)
        self._note("task.cancelled", "task", task.id)
        return self._cancelled(task)

    def requeue_all(self, filter: Json, dry_run: bool) -> Json:
        applies_to = (*ENDED_BADLY, "queued")
        return self._bulk("tasks.requeued", applies_to, self._can_be_requeued, self._as_new, filter, dry_run)

    def cancel_all(self, filter: Json, dry_run: bool) -> Json:
        applies_to = ("queued", *UNDER_WAY)
        return self._bulk("tasks.cancelled", applies_to, self._can_be_cancelled, self._cancelled, filter, dry_run)

    def _bulk(
        self,
        action: str,
        applies_to: tuple[str, ...],
        can_be: Callable[[Task], bool],
        change: Callable[[Task], Task],
        filter: Json,
        dry_run: bool,
    ) -> Json:
        statuses = filter.get("status", applies_to)
        statuses = [statuses] if isinstance(statuses, str) else statuses
        if not filter or not set(statuses) <= set(applies_to):
            raise Refused(INVALID)
        matching = [
            task
            for task in self.tasks.values()
            if task.status in statuses
            and can_be(task)
            and all(getattr(task, name) == filter[name] for name in ("context_id", "worker_id") if name in filter)
            and task.created_at < filter.get("before", task.created_at + 1)
        ]
        if matching and not dry_run:
            self._note(action, "task", "all")
            for task in matching:
                change(task)
        return {"matched": len(matching), "changed": 0 if dry_run else len(matching)}

    def _can_be_requeued(self, task: Task) -> bool:
        waits = task.status == "queued" and int(task.retry_at or 0) > self.now
        return waits or task.status in ENDED_BADLY

    def _can_be_cancelled(self, task: Task) -> bool:
        return task.status in ("queued", *UNDER_WAY)

    def _as_new(self, task: Task) -> Task:
        task.status, task.attempts, task.updated_at = "queued", 0, self.now
        task.retry_at = task.error_message = task.lease_id = task.worker_id = None
        task.progress = task.progress_at = None
        task.ready = (task.not_before or 0) <= self.now
        return task

    def _cancelled(self, task: Task) -> Task:
        if task.status in UNDER_WAY:
            self._end(self.leases[task.lease_id or ""], "released", "cancelled")
        task.status, task.retry_at, task.updated_at = "cancelled", None, self.now
        return task

    # Workers.

    def register(self, name: str, capabilities: Json | None, status: str | None) -> tuple[Worker, bool]:
        """The worker, and whether it is new."""
        worker = self.workers.get(name)
        new = worker is None
        if worker is None:
            worker = self.workers[name] = Worker(name, self.now, status or "online")
        else:
            back = "online" if worker.status in ("offline", "unknown") else worker.status
            worker.status = status or back
        worker.capabilities = worker.capabilities | (capabilities or {})
        worker.last_heartbeat = self.now
        if status in (None, "online"):
            worker.alive_at = self.now
        self._note("worker.registered" if new else "worker.updated", "worker", name)
        return worker, new

    def hold_back(self, worker_id: str, how: str) -> Worker:
        worker = self._worker(worker_id)
        before = worker.cordoned, worker.draining
        match how:
            case "cordon":
                worker.cordoned = True
            case "drain":
                worker.draining = True
            case _:
                worker.cordoned = worker.draining = False
        if (worker.cordoned, worker.draining) != before:
            done = {"cordon": "cordoned", "drain": "draining", "uncordon": "uncordoned"}[how]
            self._note(f"worker.{done}", "worker", worker_id)
        return worker

    def remove(self, worker_id: str, force: bool) -> None:
        worker = self._worker(worker_id)
        held = self.held(worker)
        if held and not force:
            raise Refused(CONFLICT)
        for lease in held:
            self._lose(lease, "its worker was removed", actor=ACTOR)
        del self.workers[worker_id]
        self._note("worker.removed", "worker", worker_id)

    def held(self, worker: Worker) -> list[Lease]:
        return [lease for lease in self.leases.values() if lease.worker_id == worker.id and lease.status == "active"]

    def online(self, worker: Worker, actor: str = ACTOR) -> None:
        """It is online, and was heard of just now."""
        if worker.status != "online":
            self._note("worker.online", "worker", worker.id, actor)
        worker.status, worker.alive_at, worker.last_heartbeat = "online", self.now, self.now

    def alive(self, worker: Worker) -> None:
        """Its lease had a heartbeat, or it completed a task. That it is in error only itself takes back."""
        if worker.status == "error":
            worker.alive_at = worker.last_heartbeat = self.now
        else:
            self.online(worker, "bloomd")

    def _stale(self, at: int | None) -> bool:
        """What is a second old, or less, is not noted anew."""
        return self.now - (at or 0) > PRECISION_MS

    # The queue.

    def pause(self, until: int | None, reason: str | None) -> Json:
        if until is not None and until <= self.now:
            raise Refused(INVALID)
        return self._set_queue("queue.paused", True, until, reason)

    def resume(self) -> Json:
        return self._set_queue("queue.resumed", False, None, None)

    def queue(self) -> Json:
        if self.is_paused:
            return {"paused": True, "until": self.until, "reason": self.reason}
        return {"paused": False, "until": None, "reason": None}

    @property
    def is_paused(self) -> bool:
        return self.paused and (self.until is None or self.until > self.now)

    def _set_queue(self, action: str, *state: Any) -> Json:
        if (self.paused, self.until, self.reason) != state:
            self.paused, self.until, self.reason = state
            self._note(action, "queue", "queue")
        return self.queue()

    # Leases: who gets a task.

    def misfit(self, worker: Worker, labels: Sequence[str]) -> str | None:
        """What keeps a worker from a task with these labels, its pin aside."""
        capabilities = worker.capabilities
        if worker.status != "online":
            return "offline"
        if not capabilities["claude_cli"]:
            return "no-claude"
        if not set(labels) <= set(capabilities["labels"]):
            return "no-label"
        if worker.draining:
            return "draining"
        if worker.cordoned:
            return "cordoned"
        return "full" if len(self.held(worker)) >= worker.capacity else None

    def fitting(self, task: Task) -> list[Worker]:
        return [
            worker
            for worker in self.workers.values()
            if task.pinned_worker_id in (None, worker.id) and self.misfit(worker, task.labels) is None
        ]

    def lease(self, task_id: str, worker_id: str | None, ttl: int | None, lease_id: str) -> Lease:
        if worker_id in self.workers:
            self.online(self.workers[worker_id])
        task = self.task(task_id)
        if task.status != "queued" or task.due_at > self.now:
            raise Refused(CONFLICT)
        fitting = [worker for worker in self.fitting(task) if worker_id in (None, worker.id)]
        if self.is_paused or not fitting:
            raise Refused(NO_WORKER)
        holders = {lease.worker_id for lease in self.of_context(task)}
        best = min(
            fitting,
            key=lambda worker: (
                worker.id not in holders,
                len(self.held(worker)) - worker.capacity,
                -worker.last_heartbeat,
                worker.id,
            ),
        )
        return self._hand_out(task, best, ttl, lease_id)

    def ask(self, worker_id: str) -> None:
        """A worker asks for tasks: it is there."""
        worker = self._worker(worker_id)
        if worker.status != "online" or self._stale(worker.alive_at) or self._stale(worker.asked_at):
            self.online(worker)
            worker.asked_at = self.now

    def claimable(self, worker_id: str, labels: list[str] | None) -> list[Task]:
        """What there is for a worker, in the order in which it gets it."""
        worker = self.workers[worker_id]
        if self.misfit(worker, []) or self.is_paused:
            return []
        able = set(worker.capabilities["labels"] if labels is None else labels)
        tasks = [
            task
            for task in self.tasks.values()
            if task.status == "queued"
            and task.ready
            and task.due_at <= self.now
            and task.pinned_worker_id in (None, worker_id)
            and set(task.labels) <= able
            and not (worker.is_serial and (self.of_context(task) or self.holder(task) not in (None, worker)))
        ]
        return sorted(tasks, key=lambda task: task.turn)

    def holder(self, task: Task) -> Worker | None:
        """Who has the conversation of the task's context, and will take the task, now or as soon as it has room."""
        worker = self.workers.get(self.conversations.get(task.context_id, "")) if task.context_id else None
        if worker is None or not worker.is_serial or task.pinned_worker_id not in (None, worker.id):
            return None
        asks = len(self.held(worker)) >= worker.capacity or (worker.asked_at or -ASKS_MS) > self.now - ASKS_MS
        return worker if asks and self.misfit(worker, task.labels) in (None, "full") else None

    def holds_conversation(self, lease: Lease) -> bool:
        return bool(lease.context_id) and self.conversations.get(lease.context_id) == lease.worker_id

    def room(self, worker_id: str) -> int:
        worker = self.workers[worker_id]
        return max(0, worker.capacity - len(self.held(worker)))

    def claimed(self, task_id: str, worker_id: str, ttl: int | None, lease_id: str) -> Lease:
        task = self.tasks[task_id]
        worker = self.workers[worker_id]
        lease = self._hand_out(task, worker, ttl, lease_id)
        if worker.is_serial and task.context_id:
            self.serial.add(lease_id)
        lease.deadline_at = self.now + task.policy["timeout_sec"] * 1000 + GRACE_MS
        lease.prolong(self.now)
        return lease

    def _hand_out(self, task: Task, worker: Worker, ttl: int | None, lease_id: str) -> Lease:
        assert lease_id not in self.leases, f"the lease id {lease_id} was given twice"
        ttl = ttl or max(300, task.policy["timeout_sec"] + 60)
        lease = self.leases[lease_id] = Lease(
            lease_id, task.id, worker.id, self.now, self.now + ttl * 1000, ttl, task.context_id, task.attempts + 1
        )
        lease.last_heartbeat = self.now
        task.status, task.lease_id, task.worker_id = "leased", lease_id, worker.id
        task.attempts, task.updated_at = lease.attempt, self.now
        task.retry_at = task.progress = task.progress_at = None
        self._note("task.leased", "task", task.id)
        return lease

    def of_context(self, task: Task) -> list[Lease]:
        """Active leases of the same context."""
        active = [lease for lease in self.leases.values() if lease.status == "active"]
        return [lease for lease in active if task.context_id and lease.context_id == task.context_id]

    # Leases: who may speak for a task.

    def task_of(self, lease_id: str) -> Task:
        if lease_id not in self.leases:
            raise Refused(NOT_FOUND)
        return self.tasks[self.leases[lease_id].task_id]

    def heartbeat(self, task_id: str, lease_id: str | None, worker_id: str | None, progress: object) -> Lease:
        lease = self._lease_of_caller(task_id, lease_id, worker_id)
        if lease is None:
            task = self.task(task_id)
            if task.status == "cancelled":
                raise Refused(CANCELLED)
            self._refuse_if_lost(task, lease_id, worker_id)
            raise Refused(NOT_FOUND)
        task = self.tasks[lease.task_id]
        lease.last_heartbeat = self.now
        lease.prolong(self.now)
        if task.status == "leased":
            self._note("task.running", "task", task.id)
        if task.status == "leased" or progress is not None:
            task.status, task.updated_at = "running", self.now
        if progress is not None:
            task.progress, task.progress_at = progress, self.now
        worker = self.workers[lease.worker_id]
        if worker.status not in ("online", "error") or self._stale(worker.alive_at):
            self.alive(worker)
        return lease

    def complete(self, task_id: str, said: Json, artifact_id: str, result_id: str) -> Ending:
        """`artifact_id` and `result_id` are those of the answer."""
        lease_id, worker_id = said.get("lease_id"), said.get("worker_id")
        lease = self._lease_of_caller(task_id, lease_id, worker_id)
        if lease is None:
            ending = self.endings.get(lease_id or "")
            if ending and ending.lease.task_id == task_id and worker_id in (None, ending.lease.worker_id):
                return ending
            self._refuse_if_lost(self.task(task_id), lease_id, worker_id)
            raise Refused(CONFLICT)
        succeeded = said["status"] == "success"
        self._end(lease, "released" if succeeded else "failed", said["status"])
        task = self.tasks[task_id]
        if succeeded:
            self._leave(task, "completed", None)
        else:
            lease.reason = said.get("error_message")
            error = said.get("error_message") or "the worker gave no reason"
            self._leave(task, "queued" if said.get("retryable", True) else "failed", error)
        self._note("task.retried" if task.status == "queued" else f"task.{task.status}", "task", task_id)
        worker = self.workers[lease.worker_id]
        asked = worker.asked_at
        if (
            worker.status not in ("online", "error")
            or self._stale(worker.alive_at)
            or (asked is not None and self._stale(asked))
        ):
            self.alive(worker)
            worker.asked_at = None if asked is None else self.now
        if succeeded and lease.id in self.serial:
            self.conversations[lease.context_id] = worker.id
        left = ("status", "lease_id", "worker_id", "attempts", "retry_at", "error_message", "updated_at")
        ending = Ending(lease, said, {name: getattr(task, name) for name in left}, artifact_id, result_id)
        self.endings[lease.id] = ending
        return ending

    def release(self, lease_id: str, reason: str | None, retry_after_ms: int | None) -> Task:
        task = self.task_of(lease_id)
        lease = self._lease_of_caller(task.id, lease_id, None)
        if lease is None:
            if self.leases[lease_id].outcome == "released":
                return task
            self._refuse_if_lost(task, lease_id, None)
            raise AssertionError("nothing stands in the way of this release")
        self._end(lease, "released", "released")
        lease.reason = reason
        task.status, task.updated_at, task.attempts = "queued", self.now, task.attempts - 1
        task.lease_id = task.worker_id = task.progress = task.progress_at = None
        task.retry_at = Chosen(self.now + retry_after_ms, self.now + retry_after_ms) if retry_after_ms else None
        task.ready = not retry_after_ms
        self._note("task.released", "task", task.id)
        return task

    def _lease_of_caller(self, task_id: str, lease_id: str | None, worker_id: str | None) -> Lease | None:
        """The task's lease, if it counts, and if whoever proves to have a lease or to be a worker proves that."""
        task = self.tasks.get(task_id)
        if task is None or task.status not in UNDER_WAY:
            return None
        lease = self.leases[task.lease_id or ""]
        proven = lease_id in (None, lease.id) and worker_id in (None, lease.worker_id)
        return lease if proven and lease.expires_at > self.now else None

    def _refuse_if_lost(self, task: Task, lease_id: str | None, worker_id: str | None) -> None:
        if lease_id is None and worker_id is None:
            return
        if task.status == "cancelled":
            raise Refused(CANCELLED)
        if lease_id is not None:
            lease = self.leases.get(lease_id)
            if lease is None or lease.task_id != task.id or lease.status != "active" or lease.expires_at <= self.now:
                raise Refused(LEASE_LOST)
        if worker_id is not None and task.status in UNDER_WAY and task.worker_id != worker_id:
            raise Refused(LEASE_LOST)

    # Leases: how they end.

    def sweep(self) -> None:
        """What time has decided."""
        for lease in list(self.leases.values()):
            if lease.status == "active" and lease.expires_at <= self.now:
                late = lease.deadline_at is not None and lease.deadline_at <= self.now
                silent = f"expired, no heartbeat for {lease.ttl_seconds} s"
                self._lose(lease, "the attempt took longer than it may" if late else silent)
        for task in self.tasks.values():
            if task.status == "queued" and task.due_at <= self.now:
                task.ready = True
        for worker in self.workers.values():
            if worker.status == "online" and (worker.alive_at or 0) < self.now - OFFLINE_MS:
                worker.status = "offline"
                self._note("worker.offline", "worker", worker.id, "bloomd")

    def _lose(self, lease: Lease, reason: str, actor: str = "bloomd") -> None:
        late = lease.deadline_at is not None and lease.deadline_at <= self.now
        self._end(lease, "expired", "deadline" if late else "expired")
        lease.reason = reason
        self._leave(self.tasks[lease.task_id], "queued", f"the lease of worker {lease.worker_id} ended: {reason}")
        self._note("lease.expired", "task", lease.task_id, actor)

    def _end(self, lease: Lease, status: str, outcome: str) -> None:
        assert lease.status == "active"
        lease.status, lease.outcome, lease.ended_at = status, outcome, self.now

    def _leave(self, task: Task, to: str, error: str | None) -> None:
        """The attempt of a task is over; it is queued again only while it has another one."""
        if to == "queued" and task.attempts >= task.max_attempts:
            to = "dead"
        task.status, task.error_message, task.updated_at = to, error, self.now
        if to == "queued":
            delay = min(RETRY_MAX_MS, RETRY_MS * 2 ** (task.attempts - 1))
            task.retry_at = Chosen(self.now + delay * 7 // 10, self.now + delay)
            task.lease_id = task.worker_id = task.progress = task.progress_at = None
            task.ready = False

    def task(self, id: str) -> Task:
        if id not in self.tasks:
            raise Refused(NOT_FOUND)
        return self.tasks[id]

    def _worker(self, id: str) -> Worker:
        if id not in self.workers:
            raise Refused(NOT_FOUND)
        return self.workers[id]

    def _note(self, action: str, kind: str, id: str, actor: str = ACTOR) -> None:
        self.audit[action, kind, id, actor] += 1
