"""A Hypothesis state machine: whatever clients, workers, operators and the clock do, and in whatever order, each answer
of the real API, and everything that can be seen of the queue afterwards, is what a model of it in plain Python says.

The daemon is real, and so is its database; only the clock is the test's (`HeldClock`). It stands still until a rule
moves it, so the model knows every time to the millisecond. It moves by steps that are either tiny or multiples of the
first retry's delay: whether a retry is due never depends on the server's dice, and an example can be repeated.

After each rule the model is compared with the rows of the database and with the audit trail; what the API shows of them
is a matter of rules of its own. Beside that the invariants are asked for, which know no model (`tests/invariants.py`).

One thing happens after the other here; concurrency is the subject of other tests.
"""

import time
from collections.abc import Iterator
from typing import Any, ClassVar

import httpx
import hypothesis.strategies as st
import psycopg
import pytest
from bloomd_process import Bloomd
from held_clock import HeldClock
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lifecycle_answers import agree, outcome_of, same_ending, same_list, same_outcomes, same_rows
from lifecycle_model import OFFLINE_MS, RETRY_MAX_MS, RETRY_MS, Model
from lifecycle_objects import Json, Lease
from lifecycle_strategies import (
    NAMES,
    NOBODY,
    SECOND,
    capabilities,
    completions,
    filters,
    mostly,
    names,
    new_tasks,
    proven_names,
    some_labels,
    ttls,
    ways,
)
from lifecycle_views import history, listed, result, stats, why
from lifecycle_witness import Witness
from servers import PostgresServer

# Some 3,600 rules in all, a minute's work on two idle cores.
EXAMPLES, STEPS = 45, 80

# Examples that have nothing to do with each other. Hypothesis's own way is meant for tests that are run a hundred times
# as often: it begins with the simplest examples, and after the tenth it mostly repeats parts of those that it has.
BACKEND = "hypothesis-urandom"

# The counts of `GET /stats` may be this old.
STATS_SECONDS = 1.0


@pytest.fixture(scope="module")
def daemon(postgres_server: PostgresServer, migrated: str) -> Iterator[Bloomd]:
    """A daemon of its own: nobody else could live by this clock."""
    bloomd = Bloomd(
        postgres_server.create_database(migrated),
        tasks__sweep_interval=0.05,
        tasks__retry_delay=RETRY_MS / SECOND,
        tasks__retry_delay_max=RETRY_MAX_MS / SECOND,
        workers__offline_after=OFFLINE_MS / SECOND,
    )
    bloomd.configure()
    with bloomd:
        yield bloomd
        assert bloomd.stop() == 0


@pytest.fixture(scope="module")
def connection(daemon: Bloomd) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(daemon.settings["database.url"], autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def clock(connection: psycopg.Connection[Any]) -> HeldClock:
    return HeldClock(connection, offline_ms=OFFLINE_MS)


@pytest.mark.slow
def test_the_api_does_what_the_model_says(daemon, clock, connection):
    run_state_machine_as_test(
        lambda: LifecycleMachine(daemon.http, clock, Witness(connection)),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            backend=BACKEND,
            suppress_health_check=list(HealthCheck),
        ),
    )


class LifecycleMachine(RuleBasedStateMachine):
    tasks = Bundle("tasks")
    leases = Bundle("leases")
    counted: ClassVar[list[tuple[float, Json]]] = []
    """What the model would have counted, and when `GET /stats` had been answered that it was compared with."""

    def __init__(self, http: httpx.Client, clock: HeldClock, witness: Witness) -> None:
        super().__init__()
        self.http = http
        self.clock = clock
        self.witness = witness
        witness.empty()
        clock.let_the_sweeper_go_on()
        self.model = Model(clock.move(SECOND))

    # Clients: tasks come, and are done with.

    @initialize(target=tasks, asked=st.lists(new_tasks, min_size=2, max_size=5))
    def tasks_are_there(self, asked: list[Json]) -> Any:
        return self.create_many(asked)

    @rule(target=tasks, asked=new_tasks)
    def create(self, asked: Json) -> Any:
        body = self._task(asked)
        answer = self.post("/llm-tasks", body)
        task, new = self._created(answer, [body], [answer.json()])
        assert (answer.status_code, answer.json()) == (201 if new else 200, task[0].json())
        return task[0].id if new else multiple()

    @rule(target=tasks, asked=st.lists(new_tasks, min_size=1, max_size=4))
    def create_many(self, asked: list[Json]) -> Any:
        bodies = [self._task(each) for each in asked]
        known = set(self.model.tasks)
        answer = self.post("/llm-tasks", bodies)
        tasks, new = self._created(answer, bodies, answer.json())
        assert (answer.status_code, answer.json()) == (201 if new else 200, [task.json() for task in tasks])
        return multiple(*dict.fromkeys(task.id for task in tasks if task.id not in known))

    @rule(task=tasks, action=st.sampled_from(["requeue", "requeue", "cancel"]))
    def requeue_or_cancel(self, task: str, action: str) -> None:
        answer = self.post(f"/llm-tasks/{task}/{action}")
        do = self.model.requeue if action == "requeue" else self.model.cancel
        if changed := agree(answer, lambda: do(task)):
            assert answer.json() == changed.json()

    @rule(action=st.sampled_from(["requeue", "cancel"]), filter=filters, dry_run=st.booleans())
    def all_that_match(self, action: str, filter: Json, dry_run: bool) -> None:
        if "before" in filter:
            filter = {**filter, "before": self.model.now + filter["before"]}
        answer = self.post(f"/llm-tasks/{action}", {"filter": filter, "dry_run": dry_run})
        do = self.model.requeue_all if action == "requeue" else self.model.cancel_all
        done = agree(answer, lambda: do(filter, dry_run))
        assert done in (None, answer.json())

    # Operators: workers come, change and go; the queue is paused.

    @initialize(max_concurrency=st.integers(1, 3))
    def workers_are_there(self, max_concurrency: int) -> None:
        self.register("w1", {"max_concurrency": max_concurrency}, None)
        self.register("w2", {"max_concurrency": 2, "labels": ["gpu"], "sessions": True}, None)

    @rule(
        name=names,
        capabilities=st.none() | capabilities,
        status=mostly(None, "online", "offline", "error"),
    )
    def register(self, name: str, capabilities: Json | None, status: str | None) -> None:
        said = {"name": name, "status": status, **({"capabilities": capabilities} if capabilities is not None else {})}
        answer = self.post("/workers", said)
        worker, new = self.model.register(name, capabilities, status)
        assert (answer.status_code, answer.json()) == (201 if new else 200, self._worker(name))
        assert worker.id == name

    @rule(name=names, how=st.sampled_from(["uncordon", "uncordon", "cordon", "drain"]))
    def hold_back(self, name: str, how: str) -> None:
        answer = self.post(f"/workers/{name}/{how}")
        if agree(answer, lambda: self.model.hold_back(name, how)):
            assert answer.json() == self._worker(name)

    @rule(name=names, force=st.booleans())
    def remove(self, name: str, force: bool) -> None:
        force = force and name in self.model.workers  # for what is not there it tries for half a second
        answer = self.http.delete(f"/api/runtime/workers/{name}", params={"force": "true"} if force else {})
        agree(answer, lambda: self.model.remove(name, force))

    @rule(
        paused=st.sampled_from([False, False, True]),
        seconds=st.sampled_from([5, 5, 0, None]),
        reason=st.sampled_from([None, "quota"]),
    )
    def pause_or_resume(self, paused: bool, seconds: int | None, reason: str | None) -> None:
        until = None if seconds is None else self.model.now + seconds * SECOND
        answer = self.post("/queue", {"paused": paused, "until": until, "reason": reason})
        state = agree(answer, lambda: self.model.pause(until, reason) if paused else self.model.resume())
        assert state in (None, answer.json())

    @rule()
    def put_everything_right(self) -> None:
        """Nothing is paused, and everybody is there: lest an example gets stuck."""
        if self.model.is_paused:
            self.pause_or_resume(False, None, None)
        for name in NAMES:
            worker = self.model.workers.get(name)
            if worker is None or self.model.misfit(worker, []):
                self.register(name, {"max_concurrency": 3, "claude_cli": True}, "online")
                self.hold_back(name, "uncordon")

    # Workers: they get tasks.

    @rule(target=leases, task=tasks, queued=st.booleans(), name=st.none() | names, ttl=ttls)
    def lease(self, task: str, queued: bool, name: str | None, ttl: int | None) -> Any:
        """`queued`: if the task is not, then the first that is."""
        if queued and self.model.tasks[task].status != "queued":
            task = next((other.id for other in self.model.tasks.values() if other.status == "queued"), task)
        answer = self.post(f"/llm-tasks/{task}/lease", {"worker_id": name, "ttl_seconds": ttl})
        id = answer.json().get("lease", {}).get("id", "")
        lease = agree(answer, lambda: self.model.lease(task, name, ttl, id), status=201)
        if lease is None:
            return multiple()
        assert answer.json() == {"lease": lease.json(), "worker": self._worker(lease.worker_id)}
        return lease.id

    @rule(target=leases, name=names, most=st.integers(1, 4), labels=st.none() | some_labels, ttl=ttls)
    def claim(self, name: str, most: int, labels: list[str] | None, ttl: int | None) -> Any:
        return multiple(*(lease.id for lease in self._claim(name, most, labels, ttl)))

    @precondition(lambda self: self.clock.sweeping)
    @rule(target=leases)
    def everybody_who_is_online_asks(self) -> Any:
        """Whatever nothing keeps, by what is told of it, is claimed, and nothing else is."""
        claimable = set(self._claimable())
        got: list[Lease] = []
        for name in [worker.id for worker in self.model.workers.values() if worker.status == "online"]:
            while leases := self._claim(name, 100, None, None):
                got += leases
        assert {lease.task_id for lease in got} <= claimable
        assert bool(got) == bool(claimable)
        assert not self._claimable()
        return multiple(*(lease.id for lease in got))

    # Workers: they do them, or what used to be theirs.

    @rule(
        lease=leases,
        way=ways,
        name=proven_names,
        of=st.none() | tasks,
        progress=st.sampled_from([None, 50, "reading"]),
    )
    def heartbeat(self, lease: str, way: str, name: str | None, of: str | None, progress: object) -> None:
        path, said = self._proven(lease, way, name, of)
        answer = self.http.post(f"{path}/heartbeat", json={**said, "progress": progress})
        task_id = of or self.model.leases[lease].task_id
        prolonged = agree(
            answer,
            lambda: self.model.heartbeat(task_id, said.get("lease_id"), said.get("worker_id"), progress),
        )
        if prolonged:
            assert answer.json() == {"lease": prolonged.json(), "expires_at": prolonged.expires_at}

    @rule(
        lease=leases,
        way=ways,
        name=proven_names,
        of=st.none() | tasks,
        completion=completions,
    )
    def complete(self, lease: str, way: str, name: str | None, of: str | None, completion: Json) -> None:
        path, proof = self._proven(lease, way, name, of)
        said = {**completion, **proof}
        answer = self.http.post(f"{path}/complete", json=said)
        task_id = of or self.model.leases[lease].task_id
        body = answer.json()
        ids = body.get("artifact", {}).get("id", ""), body.get("result", {}).get("id", "")
        if ending := agree(answer, lambda: self.model.complete(task_id, said, *ids)):
            same_ending(body, ending, self.model.tasks[task_id])

    @rule(
        target=leases,
        name=names,
        most=st.integers(1, 4),
        milliseconds=mostly(1, 5 * SECOND, 30 * SECOND),
        endings=st.lists(st.tuples(ways, st.none() | completions), min_size=4, max_size=4),
    )
    def work(self, name: str, most: int, milliseconds: int, endings: list[tuple[str, Json | None]]) -> Any:
        """As it mostly goes: a worker claims, shows that it is at work, and completes; or fails to."""
        leases = [lease.id for lease in self._claim(name, most, None, None)]
        for lease, (way, _) in zip(leases, endings, strict=False):
            self.heartbeat(lease, way, None, None, None)
        self.time_passes(milliseconds)
        for lease, (way, completion) in zip(leases, endings, strict=False):
            if completion:
                self.complete(lease, way, None, None, completion)
        return multiple(*leases)

    @precondition(lambda self: self.model.leases)
    @rule(
        beats=st.lists(
            st.tuples(st.just(NOBODY) | leases, proven_names),
            min_size=1,
            max_size=4,
        ),
        progress=st.sampled_from([None, 99]),
    )
    def heartbeat_many(self, beats: list[tuple[str, str | None]], progress: object) -> None:
        """Which of two beats of one lease counts is nobody's business: they say the same."""
        proof = {lease: self._name(name, lease) for lease, name in beats}
        said = [{"lease_id": lease, "worker_id": proof[lease]} for lease, _ in beats]
        answer = self.post("/leases/heartbeat", [{**each, "progress": progress} for each in said])

        def prolong(lease_id: str, worker_id: str | None) -> Json:
            task = self.model.task_of(lease_id)
            lease = self.model.heartbeat(task.id, lease_id, worker_id, progress)
            return {"task_id": task.id, "expires_at": lease.expires_at}

        same_outcomes(answer, [outcome_of(prolong, **each) for each in said])

    @precondition(lambda self: self.model.leases)
    @rule(
        endings=st.lists(
            st.tuples(st.just(NOBODY) | leases, proven_names, completions),
            min_size=1,
            max_size=4,
        )
    )
    def complete_many(self, endings: list[tuple[str, str | None, Json]]) -> None:
        said = [
            {**completion, "lease_id": lease, "worker_id": self._name(name, lease)}
            for lease, name, completion in endings
        ]
        answer = self.post("/leases/complete", said)

        def end(outcome: Json, **said: Any) -> Json:
            task = self.model.task_of(said["lease_id"])
            ending = self.model.complete(task.id, said, outcome.get("artifact_id", ""), outcome.get("result_id", ""))
            left = ending.left_task
            return {
                "task_id": task.id, "task_status": left["status"], "attempts": left["attempts"],
                "retry_at": left["retry_at"], "artifact_id": ending.artifact_id, "result_id": ending.result_id,
            }  # fmt: skip

        answers = answer.json()
        assert len(answers) == len(said), answers
        same_outcomes(
            answer,
            [outcome_of(end, outcome=outcome, **each) for each, outcome in zip(said, answers, strict=True)],
        )

    @precondition(lambda self: self.model.leases)
    @rule(
        back=st.lists(st.just(NOBODY) | leases, min_size=1, max_size=4),
        reason=st.sampled_from([None, "going away"]),
        seconds=st.sampled_from([None, 0, 5]),
    )
    def release(self, back: list[str], reason: str | None, seconds: int | None) -> None:
        said = [{"lease_id": lease, "reason": reason, "retry_after_seconds": seconds} for lease in back]
        answer = self.post("/leases/release", said)

        def give_back(lease_id: str) -> Json:
            task = self.model.release(lease_id, reason, (seconds or 0) * SECOND)
            return {"task_id": task.id, "task_status": "queued"}

        same_outcomes(answer, [outcome_of(give_back, lease_id=lease) for lease in back])

    # The clock, and who acts on it.

    @rule(milliseconds=st.sampled_from([1, 5 * SECOND, 10 * SECOND, 30 * SECOND, 60 * SECOND, 300 * SECOND]))
    def time_passes(self, milliseconds: int) -> None:
        self.model.now = self.clock.move(milliseconds)
        if self.clock.sweeping:
            self._sweep()

    @precondition(lambda self: self.clock.sweeping)
    @rule()
    def the_sweeper_is_held_up(self) -> None:
        self.clock.hold_the_sweeper_up()

    @precondition(lambda self: not self.clock.sweeping)
    @rule()
    def the_sweeper_goes_on(self) -> None:
        self.clock.let_the_sweeper_go_on()
        self._sweep()

    # Whoever looks.

    @rule(task=tasks)
    def look_at_a_task(self, task: str) -> None:
        found = self.get(f"/llm-tasks/{task}")
        expected = self.model.tasks[task]
        shown = {"history": history(self.model, expected), "result": result(self.model, expected)}
        assert found == {**listed(self.model, expected), **shown}
        told = self.get(f"/llm-tasks/{task}/explain")
        assert told["status"] == expected.status
        assert {reason["code"] for reason in told["reasons"]} == why(self.model, task)

    @rule(name=names)
    def look_at_a_worker(self, name: str) -> None:
        answer = self.http.get(f"/api/runtime/workers/{name}")
        if name not in self.model.workers:
            assert answer.status_code == 404
            return
        found = answer.json()
        held = {lease["id"]: lease for lease in found.pop("leases")}
        assert found == self._worker(name)
        assert held == {lease.id: lease.json() for lease in self.model.held(self.model.workers[name])}

    @rule()
    def look_at_the_whole(self) -> None:
        model = self.model
        tasks, leases = model.tasks.values(), model.leases.values()
        assert self.get("/queue") == model.queue()
        same_list(self.get("/llm-tasks?limit=1000"), {task.id: listed(model, task) for task in tasks}, by="created_at")
        same_list(self.get("/leases?limit=1000"), {lease.id: lease.json() for lease in leases}, by="started_at")
        same_list(self.get("/workers"), {name: self._worker(name) for name in model.workers}, by="registered_at")
        asked = time.monotonic()
        found = self.get("/stats")
        self.counted.append((time.monotonic(), stats(model)))
        while self.counted[0][0] < asked - STATS_SECONDS:
            del self.counted[0]
        assert found in [stats for _, stats in self.counted]

    @rule()
    def read_the_trail(self) -> None:
        assert self.witness.broken_by_trail() == {}

    # What must be so after each rule.

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        model, found = self.model, self.witness.rows()
        workers = {name: worker.row(len(model.held(worker))) for name, worker in model.workers.items()}
        same_rows(found["tasks"], {id: task.row() for id, task in model.tasks.items()})
        same_rows(found["leases"], {id: lease.json() for id, lease in model.leases.items()})
        same_rows(found["workers"], workers)

    @invariant()
    def each_change_is_in_the_audit_trail(self) -> None:
        assert self.witness.new_entries() == self.model.audit
        self.model.audit.clear()

    @invariant()
    def no_rule_is_broken(self) -> None:
        assert self.witness.broken_by_tables() == []

    # How the daemon is asked, and its answers are judged.

    def get(self, path: str) -> Any:
        answer = self.http.get(f"/api/runtime{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: object = None) -> httpx.Response:
        return self.http.post(f"/api/runtime{path}", json={} if body is None else body)

    def _created(self, answer: httpx.Response, asked: list[Json], found: list[Json]) -> Any:
        assert answer.status_code in (200, 201), answer.text
        return self.model.create(asked, [each["id"] for each in found])

    def _claim(self, name: str, most: int, labels: list[str] | None, ttl: int | None) -> list[Lease]:
        """One claim, and what came of it.

        A worker that takes the tasks of a context one at a time gets them in their order, too; but it may get fewer at
        once than there are for it, and then has to ask again.
        """
        said = {"worker_id": name, "max": most, "labels": labels, "ttl_seconds": ttl}
        answer = self.post("/leases/claim", said)
        agree(answer, lambda: self.model.ask(name))
        if answer.status_code != 200:
            return []
        got = answer.json()["leases"]
        found = [each["task"]["id"] for each in got]
        claimable = [task.id for task in self.model.claimable(name, labels)]
        room = min(most, self.model.room(name))
        if self.model.workers[name].is_serial:
            contexts = [context for id in found if (context := self.model.tasks[id].context_id)]
            assert len(contexts) == len(set(contexts))
            assert found == [id for id in claimable if id in found]
            assert len(found) <= room
            assert found[:1] == claimable[:1]
        else:
            assert found == claimable[:room]
        leases = [self.model.claimed(each["task"]["id"], name, ttl, each["lease"]["id"]) for each in got]
        assert got == [
            {
                "lease": each.json(),
                "task": self.model.tasks[each.task_id].json(),
                "holds_conversation": self.model.holds_conversation(each),
            }
            for each in leases
        ]
        return leases

    def _claimable(self) -> list[str]:
        """The tasks that nothing keeps, as the API tells."""
        queued = [task.id for task in self.model.tasks.values() if task.status == "queued"]
        told = {id: self.get(f"/llm-tasks/{id}/explain")["reasons"] for id in queued}
        assert {id: {reason["code"] for reason in told[id]} for id in queued} == {
            id: why(self.model, id) for id in queued
        }
        return [id for id in queued if [reason["code"] for reason in told[id]] == ["claimable"]]

    def _sweep(self) -> None:
        self.clock.wait_for_the_sweeper()
        self.model.sweep()

    def _task(self, asked: Json) -> Json:
        offset = asked["not_before"]
        return {"prompt": "Say hello", **asked, "not_before": None if offset is None else self.model.now + offset}

    def _worker(self, name: str) -> Json:
        worker = self.model.workers[name]
        return worker.json(len(self.model.held(worker)))

    def _name(self, name: str | None, lease: str) -> str | None:
        if name != "its own":
            return name
        return self.model.leases[lease].worker_id if lease in self.model.leases else None

    def _proven(self, lease: str, way: str, name: str | None, of: str | None) -> tuple[str, Json]:
        """A path, and what is said there by somebody who proves in this way that a task is his."""
        task = of or self.model.leases[lease].task_id
        said = {"worker_id": self._name(name, lease), "lease_id": None if way == "nothing" else lease}
        prefix = f"/l/{lease}" if way.startswith("path") else ""
        return f"{prefix}/api/runtime/llm-tasks/{task}", {k: v for k, v in said.items() if v is not None}
