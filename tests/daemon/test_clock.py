"""The database's clock is set an hour forward or back under two running daemons. What that means for everything timed.

Everything that has a time is judged by `bloom_now_ms()`, and what has none goes on as if nothing had happened:

                      an hour forward                           an hour back
    leases            expire, each once; none of them counts    go on; one that was made before lasts for its ttl and
                                                                the hour, or for its ttl from its next heartbeat
    retry waits       are over                                  last an hour longer, or until somebody requeues
    not_before        has come                                  comes at that time of the clock, an hour later
    a pause with      is over                                   ends at that time of the clock, an hour later
      a time
    workers           silent ones go offline; whoever claims    whoever was alive counts as online for an hour more
                      or waits is back soon
    the leader        one, elected anew                         one, the same or a new one

A node that follows the events misses none: their order is not one of times.
"""

import signal
from collections.abc import Callable, Container, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest
from bloomd_process import Bloomd
from invariants import TABLES, TRAIL, broken
from servers import eventually

from bloomd.runtime.leader import Timing

HOUR = 3_600_000

# Until a leader is there again, whatever happened to the last one.
LEADER_SECONDS = 10.0

OFFLINE_SECONDS = 15

# One that nobody has heartbeated since the clock was set back, before its lease ended.
ACROSS = {"3: a heartbeat after the end"}


class Clock:
    """The clock of a database, and its tables."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def shift(self, by_ms: int) -> None:
        """Let it be so much later than it is."""
        self.sql(
            "CREATE OR REPLACE FUNCTION bloom_now_ms() RETURNS bigint LANGUAGE plpgsql STABLE PARALLEL SAFE AS "
            f"$$ BEGIN RETURN (extract(epoch FROM clock_timestamp()) * 1000)::bigint + {by_ms}; END $$"
        )

    @property
    def now(self) -> int:
        return self.sql("SELECT bloom_now_ms()")[0][0]


class Scene:
    """Something of everything that has a time, made at one node."""

    def __init__(self, daemon: Bloomd, clock: Clock) -> None:
        self._http = daemon.http
        self.clock = clock
        for worker in ("busy", "quiet"):
            self.register(worker)
        self.leases: dict[str, dict[str, Any]] = {}
        # They are for one worker, so that who waits for something else never gets them.
        names = ("leased", "running", "short", "claimed", "given back")
        self.tasks = {name: self.create(pinned_worker_id="busy") for name in names}
        self.tasks["last"] = self.create(pinned_worker_id="busy", max_attempts=1)
        for name in ("leased", "running", "last"):
            self.leases[name] = self.lease(name)
        self.leases["short"] = self.lease("short", ttl_seconds=5)
        for each in self.ask("leases/claim", worker_id="busy", max=2)["leases"]:
            [name] = [name for name, task in self.tasks.items() if task == each["task"]["id"]]
            self.leases[name] = each["lease"]
        for name in ("running", "claimed"):
            self.ask(f"llm-tasks/{self.tasks[name]}/heartbeat")
        back = {"lease_id": self.leases.pop("given back")["id"], "retry_after_seconds": 600}
        assert self._http.post("/api/runtime/leases/release", json=[back]).json()[0]["ok"]
        self.tasks["later"] = self.create(pinned_worker_id="busy", not_before=clock.now + HOUR // 2)
        self.ask("queue", paused=True, until=clock.now + HOUR // 2, reason="lunch")

    def ask(self, path: str, /, **body: Any) -> Any:
        return self._http.post(f"/api/runtime/{path}", json=body).raise_for_status().json()

    def register(self, worker: str) -> None:
        self.ask("workers", name=worker, capabilities={"max_concurrency": 16})

    def create(self, **fields: Any) -> str:
        return self.ask("llm-tasks", prompt="x", **fields)["id"]

    def lease(self, name: str, **fields: Any) -> dict[str, Any]:
        return self.ask(f"llm-tasks/{self.tasks[name]}/lease", worker_id="busy", **fields)["lease"]

    def claim(self, worker: str, **fields: Any) -> list[dict[str, Any]]:
        return self.ask("leases/claim", worker_id=worker, max=16, **fields)["leases"]

    def say(self, word: str, name: str, **body: Any) -> httpx.Response:
        """A heartbeat or a completion, by the lease that the scene knows."""
        said = {"lease_id": self.leases[name]["id"], **({"status": "success"} if word == "complete" else {}), **body}
        return self._http.post(f"/api/runtime/llm-tasks/{self.tasks[name]}/{word}", json=said)

    def task(self, name: str) -> dict[str, Any]:
        return self._http.get(f"/api/runtime/llm-tasks/{self.tasks[name]}").json()

    def explain(self, name: str) -> list[dict[str, Any]]:
        return self._http.get(f"/api/runtime/llm-tasks/{self.tasks[name]}/explain").json()["reasons"]

    def statuses(self) -> dict[str, str]:
        return {name: self.task(name)["status"] for name in self.tasks}

    def times(self, action: str, entity: str) -> int:
        """How often this happened, by the audit trail."""
        entries = self._http.get("/api/runtime/audit", params={"entity_id": entity, "action": action}).json()
        return len(entries)

    def worker(self, name: str) -> str:
        return self._http.get(f"/api/runtime/workers/{name}").json()["status"]

    @property
    def paused(self) -> bool:
        return self._http.get("/api/runtime/queue").json()["paused"]


def epoch(daemon: Bloomd) -> tuple[bool, int] | None:
    """Whether this node leads, and the epoch; None when it knows of no leader."""
    found = daemon.status()["leader"]
    return (found["here"], found["epoch"]) if found else None


def assert_one_leads(nodes: list[Bloomd], clock: Clock, *, epochs: Container[int]) -> None:
    """Soon, in one of these epochs, and all nodes know; every epoch was given once."""
    # An end further away than the time to live is left over from before the clock was set back.
    leads = f"SELECT bloom_leads(epoch) AND expires_at <= bloom_now_ms() + {Timing().ttl * 1000} FROM leaders"
    eventually(lambda: clock.sql(leads) == [(True,)], seconds=LEADER_SECONDS)

    def agreed() -> bool:
        seen = [epoch(node) for node in nodes]
        return None not in seen and len({each[1] for each in seen}) == 1 and [each[0] for each in seen].count(True) == 1

    eventually(agreed)
    assert epoch(nodes[0])[1] in epochs
    elected = clock.sql("SELECT detail, count(*) FROM audit_logs WHERE action = 'leader.elected' GROUP BY detail")
    assert {number for _, number in elected} == {1}


@pytest.fixture
def clock(database: str) -> Clock:
    return Clock(database)


@pytest.fixture
def nodes(bloomd: Callable[..., Bloomd]) -> list[Bloomd]:
    """Two of them; the first one leads."""
    made = [
        bloomd(migrate=first, tasks__sweep_interval=0.2, tasks__retry_delay=0.1, workers__offline_after=OFFLINE_SECONDS)
        for first in (True, False)
    ]
    for node in made:
        node.start()
        eventually(lambda node=node: epoch(node) is not None)
    return made


@pytest.fixture
def in_background() -> Iterator[Callable[..., "Future[Any]"]]:
    with ThreadPoolExecutor() as threads:  # asked for first, it ends last: when the daemons are gone
        yield threads.submit


def test_an_hour_forward(in_background: Callable[..., "Future[Any]"], nodes: list[Bloomd], clock: Clock) -> None:
    scene = Scene(nodes[1], clock)
    scene.register("waiting")
    waiting = in_background(
        nodes[1].http.post,
        "/api/runtime/leases/claim",
        json={"worker_id": "waiting", "labels": ["night"], "wait_seconds": 60},
    )
    assert scene.statuses() == {
        "leased": "leased", "running": "running", "short": "leased", "claimed": "running", "last": "leased",
        "given back": "queued", "later": "queued",
    }  # fmt: skip
    assert scene.paused
    assert {scene.worker(name) for name in ("busy", "quiet", "waiting")} == {"online"}

    clock.shift(HOUR)

    # The old leases are refused from this moment on, swept or not.
    assert not scene.paused
    for name in scene.leases:
        for word in ("heartbeat", "complete"):
            assert scene.say(word, name).status_code == 409
    assert scene.say("complete", "leased", lease_id=None).status_code == 409
    assert_one_leads(nodes, clock, epochs={2})

    # Each has expired once, and goes on as after any lost attempt: queued again, or dead when it was the last one.
    for name in scene.leases:
        eventually(lambda name=name: scene.times("lease.expired", scene.tasks[name]))
    assert scene.task("last")["status"] == "dead"

    # Who fell silent is offline. Who waits is so for a moment at the most, and then gets what there is for it.
    for worker in ("busy", "quiet"):
        eventually(lambda worker=worker: scene.worker(worker) == "offline")
        assert scene.times("worker.offline", worker) == 1
    eventually(lambda: scene.worker("waiting") == "online", seconds=OFFLINE_SECONDS / 3 + 3)
    scene.tasks["new"] = scene.create(labels=["night"])
    [given] = waiting.result().json()["leases"]
    assert given["task"]["id"] == scene.tasks["new"]
    scene.leases["new"] = given["lease"]
    assert scene.say("complete", "new").status_code == 200

    # Whoever asks is online again. All that waited for a time is due: the retries, and what was not to start before.
    due = {scene.tasks[name] for name in ("leased", "running", "short", "claimed", "given back", "later")}
    taken: set[str] = set()
    eventually(lambda: taken.update(each["task"]["id"] for each in scene.claim("busy")) or taken == due)
    assert scene.worker("busy") == "online"
    for name in scene.leases.keys() - {"new"}:
        assert scene.say("complete", name).status_code == 409
        assert scene.times("lease.expired", scene.tasks[name]) == 1
    assert clock.sql("SELECT task_id FROM llm_results") == [(scene.tasks["new"],)]
    assert broken(clock.sql, TABLES, TRAIL) == {}
    assert nodes[0].ctl("status").returncode == 0


def test_an_hour_back(nodes: list[Bloomd], clock: Clock) -> None:
    scene = Scene(nodes[1], clock)
    began = clock.now
    before = scene.statuses()

    clock.shift(-HOUR)
    assert_one_leads(nodes, clock, epochs={1, 2})
    swept = "SELECT count(*) FROM audit_logs WHERE action IN ('lease.expired', 'worker.offline')"

    # No time comes for anything until the clock is where it was: whoever was alive then counts as online until then.
    for back in (HOUR, HOUR // 2 + 60_000, 60_000):
        clock.shift(-back)
        assert_one_leads(nodes, clock, epochs=range(1, 10))
        promoted = scene.create(not_before=clock.now + 100, labels=["nobody"])  # the leader is at work
        eventually(lambda promoted=promoted: clock.sql(f"SELECT ready FROM llm_tasks WHERE id = '{promoted}'")[0][0])
        assert scene.paused == (clock.now < began + HOUR // 2)
        assert clock.sql(swept) == [(0,)]
        assert scene.statuses() == before
        assert {scene.worker(name) for name in ("busy", "quiet")} == {"online"}

    # The last heartbeat counts, and a completion, although it is from before the beginning.
    clock.shift(-HOUR)
    assert_one_leads(nodes, clock, epochs=range(1, 20))
    assert scene.say("heartbeat", "claimed").json()["expires_at"] < began
    assert scene.say("complete", "leased").status_code == 200
    [attempt] = scene.task("leased")["history"]
    assert attempt["ended_at"] < attempt["started_at"]
    assert scene.task("leased")["status"] == "completed"
    for node in nodes:
        assert node.ctl("status").returncode == 0
        assert node.http.get("/metrics").status_code == 200

    # Whoever does not want to wait for the hour resumes the queue, and requeues what waits for its retry.
    assert scene.paused
    scene.ask("queue", paused=False)
    assert scene.claim("busy") == []
    assert [reason["code"] for reason in scene.explain("given back")] == ["retry-delay"]
    scene.ask(f"llm-tasks/{scene.tasks['given back']}/requeue")
    assert [each["task"]["id"] for each in scene.claim("busy")] == [scene.tasks["given back"]]
    assert [reason["code"] for reason in scene.explain("later")] == ["not-before"]

    # Where the clock was, each lease ends in its time: that of the heartbeat an hour ago at once, the others as if
    # nothing had been.
    clock.shift(0)
    assert_one_leads(nodes, clock, epochs=range(1, 30))
    eventually(lambda: scene.times("lease.expired", scene.tasks["claimed"]))
    eventually(lambda: scene.times("lease.expired", scene.tasks["short"]))
    assert scene.say("complete", "claimed").status_code == 409
    assert scene.say("complete", "running").status_code == 200
    assert scene.say("complete", "last").status_code == 200
    eventually(lambda: scene.worker("quiet") == "offline")
    assert scene.times("worker.offline", "quiet") == 1
    assert {name: scene.times("lease.expired", scene.tasks[name]) for name in scene.leases} == {
        "leased": 0, "running": 0, "short": 1, "claimed": 1, "last": 0,
    }  # fmt: skip
    assert broken(clock.sql, TABLES, TRAIL).keys() <= ACROSS


def test_a_leader_that_dies_as_the_clock_is_set_back(nodes: list[Bloomd], clock: Clock) -> None:
    """Its row says that it leads for an hour more, which no row can say."""
    first, other = nodes
    first.signal(signal.SIGKILL)
    clock.shift(-HOUR)
    assert_one_leads([other], clock, epochs={2})
