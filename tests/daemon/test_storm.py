"""A concurrency storm on two bloomds and one database, judged by SQL while it rages and when it is over.

`make soak` lets it rage for longer. `SOAK_SEED` sends out other clients.
"""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

import psycopg
import pytest
import trio
from bloomd_process import Bloomd
from invariants import AT_REST, TABLES, TRAIL, broken
from outputs import OUTPUT
from psycopg.conninfo import make_conninfo
from servers import eventually
from storm import OFFLINE_SECONDS, RETRY, TTL_SECONDS, WORKERS, Storm, Unknown, complete_many, wake

from bloomd.postgres import Pool

SECONDS = float(os.environ.get("SOAK_SECONDS", "20"))
SEED = os.environ.get("SOAK_SEED", "1")

# For a leader to be there again, and for its sweep.
SETTLE_SECONDS = 20.0

# One of a daemon's sessions, and preferably one that is at work: whether it had committed nobody knows.
END_A_SESSION = """
SELECT count(pg_terminate_backend(pid))
  FROM (SELECT pid
          FROM pg_stat_activity
         WHERE datname = current_database() AND application_name NOT IN ('judge', 'sweepers')
         ORDER BY state = 'active' AND random() < 0.8 DESC, random()
         LIMIT 1) AS session
"""

UNFINISHED = """
SELECT count(*) FROM llm_tasks WHERE status IN ('queued', 'leased', 'running')
"""

# What must have happened for the storm to have been one.
EXPECTED = {
    "task.created", "task.leased", "task.running", "task.completed", "task.failed", "task.dead", "task.retried",
    "task.released", "task.requeued", "task.cancelled", "tasks.requeued", "tasks.cancelled", "lease.expired",
    "worker.registered", "worker.removed", "worker.cordoned", "worker.draining", "worker.uncordoned", "worker.online",
    "worker.offline", "queue.paused", "queue.resumed", "leader.elected",
}  # fmt: skip


class Judge:
    """Asks the database, as somebody with psql would."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = make_conninfo(conninfo, application_name="judge")
        self.seen: dict[str, list[tuple[Any, ...]]] = {}
        """What was broken while the storm raged."""

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            return connection.execute(statement.encode()).fetchall()

    def look(self, *questions: dict[str, str]) -> dict[str, list[tuple[Any, ...]]]:
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            return broken(lambda question: connection.execute(question.encode()).fetchall(), *questions)

    def actions(self) -> set[str]:
        return {action for (action,) in self.sql("SELECT DISTINCT action FROM audit_logs")}

    def stats(self) -> dict[str, Any]:
        """What `GET /stats` should say, counted."""
        by_status = dict(self.sql("SELECT status, count(*) FROM llm_tasks GROUP BY status"))
        [(leases, active)] = self.sql("SELECT count(*), count(*) FILTER (WHERE status = 'active') FROM leases")
        [(workers, online)] = self.sql("SELECT count(*), count(*) FILTER (WHERE status = 'online') FROM workers")
        return {
            "tasks": {"total": sum(by_status.values()), "by_status": by_status},
            "leases": {"total": leases, "active": active},
            "workers": {"total": workers, "online": online},
        }

    async def until(self, question: str, *, seconds: float) -> None:
        """Wait until the count that the question asks for is 0."""
        with trio.fail_after(seconds):
            while (await trio.to_thread.run_sync(self.sql, question))[0][0]:
                await trio.sleep(0.1)


# httpx leaves the body of a request that was cancelled half-sent to the garbage collector.
@pytest.mark.filterwarnings("ignore:.*ByteStream.__aiter__:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
async def test_a_storm_leaves_every_invariant_whole(bloomd: Callable[..., Bloomd], database: str) -> None:
    daemons = [
        bloomd(
            migrate=first,
            tasks__retry_delay=RETRY.first_seconds,
            tasks__retry_delay_max=RETRY.max_seconds,
            workers__offline_after=OFFLINE_SECONDS,
        )
        for first in (True, False)
    ]
    for daemon in daemons:
        await trio.to_thread.run_sync(daemon.start)
    judge = Judge(database)
    chance = Random(SEED)
    async with (
        Pool(database, size=4, application_name="sweepers") as pool,
        Storm([daemon.url for daemon in daemons], pool, SEED) as storm,
    ):
        for worker in WORKERS:
            await storm.register(chance, worker)

        ends_at = trio.current_time() + SECONDS

        async def look() -> None:
            """Until its time is over and everything has happened, on a busy machine too."""
            while not storm.over.is_set():
                began = trio.current_time()
                judge.seen |= await trio.to_thread.run_sync(judge.look, TABLES, TRAIL)
                storm.backlog = (await trio.to_thread.run_sync(judge.sql, UNFINISHED))[0][0]
                storm.count["looks"] += 1
                await trio.sleep(max(0.5, 4 * (trio.current_time() - began)))
                happened = await trio.to_thread.run_sync(judge.actions)
                if trio.current_time() > ends_at and happened >= EXPECTED and len(storm.ledger.results) > 200:
                    storm.over.set()

        async def end_sessions() -> None:
            while not storm.over.is_set():
                storm.count["sessions ended"] += (await trio.to_thread.run_sync(judge.sql, END_A_SESSION))[0][0]
                await trio.sleep(chance.uniform(0.1, 0.3))

        async def kill_leaders() -> None:
            pause = 8.0
            while not await storm.is_over_within(pause):
                leader = await trio.to_thread.run_sync(leading, daemons)
                leader.signal(signal.SIGKILL)
                leader.process.wait()
                storm.count["daemons killed"] += 1
                await trio.sleep(1)
                await trio.to_thread.run_sync(partial(leader.start, ready=False))
                pause = chance.uniform(20, 60)

        with trio.fail_after(5 * SECONDS + 60):
            await storm.rage(also=[look, end_sessions, kill_leaders])
        print(
            f"seed {SEED}, {SECONDS:g} s:",
            ", ".join(f"{number} {what}" for what, number in sorted(storm.count.items())),
        )

        assert judge.seen == {}
        assert storm.ledger.violations == []

        # Nobody is left: what was forgotten ends by the clock alone.
        await judge.until("SELECT count(*) FROM leases WHERE status = 'active'", seconds=TTL_SECONDS + SETTLE_SECONDS)
        await judge.until(
            "SELECT count(*) FROM llm_tasks WHERE status = 'queued' AND NOT ready", seconds=SETTLE_SECONDS
        )
        await judge.until("SELECT count(*) FROM workers WHERE status = 'online'", seconds=SETTLE_SECONDS)
        await wake(storm, chance, 0)
        await drain(storm, judge, chance)

    assert judge.look(TABLES, TRAIL, AT_REST) == {}
    assert storm.ledger.violations == []
    assert_told_the_truth(storm, judge)
    assert storm.count["sessions ended"] > SECONDS
    assert storm.count["answers 503"] > 0
    assert storm.count["claims hung up on"] > 0
    assert len(storm.ledger.refused) > 10
    for daemon in daemons:
        log = daemon.log.read_text()
        assert "Traceback" not in log
        assert "task rescued" not in log
        eventually(lambda daemon=daemon: daemon.http.get("/api/runtime/stats").json() == judge.stats())
        assert daemon.stop() == 0


def leading(daemons: list[Bloomd]) -> Bloomd:
    """The daemon that leads, or one of them when none knows."""
    for daemon in daemons:
        found = daemon.status()["leader"]
        if found and found["here"]:
            return daemon
    return daemons[0]


async def drain(storm: Storm, judge: Judge, chance: Random) -> None:
    """Every task can be brought to its end by claims: none is stranded."""
    await storm.insist(chance, "POST", "/queue", {"paused": False})
    for worker in WORKERS:
        await storm.register(chance, worker)
        await storm.insist(chance, "POST", f"/workers/{worker}/uncordon")

    async def work(worker: str, at: int) -> None:
        asked = {"worker_id": worker, "max": 12, "wait_seconds": 0.5, "labels": ["gpu", "big"]}
        while True:
            with suppress(Unknown):
                answer = await storm.ask(chance, "POST", "/leases/claim", asked, at=at)
                held = [storm.ledger.lease(each["lease"]) for each in answer.json().get("leases", [])]
                if held:
                    await complete_many(storm, chance, held)

    async with trio.open_nursery() as nursery:
        for place, worker in enumerate(WORKERS):
            nursery.start_soon(work, worker, place % 2)
        await judge.until(UNFINISHED, seconds=60)
        nursery.cancel_scope.cancel()


def assert_told_the_truth(storm: Storm, judge: Judge) -> None:
    """What the clients were told is what the database has, and what it has told them is all there."""
    ledger = storm.ledger
    assert ledger.created <= {id for (id,) in judge.sql("SELECT id FROM llm_tasks")}
    assert ledger.leased <= {id for (id,) in judge.sql("SELECT id FROM leases")}
    results = {
        lease: (result, artifact)
        for lease, result, artifact in judge.sql("SELECT lease_id, id, artifact_id FROM llm_results")
    }
    told = {lease: next(iter(answers)) for lease, answers in ledger.results.items()}
    assert told.items() <= results.items()
    assert ledger.unnamed <= set(results.values())
    assert ledger.refused.isdisjoint(results)
    outputs = judge.sql(f"SELECT lease_id, {OUTPUT} FROM llm_results")
    assert [(lease, said) for lease, said in outputs if said not in (f"of {lease}", "of somebody")] == []
    entries = {
        (action, task): number
        for action, task, number in judge.sql("SELECT action, entity_id, count(*) FROM audit_logs GROUP BY 1, 2")
    }
    assert {each: number for each, number in ledger.done.items() if entries.get(each, 0) < number} == {}
