"""A storm: dozens of clients of two bloomds on one database, each of which does what its kind does, as badly as it may.

Clients talk to either daemon at random. They go away while they wait, repeat themselves, fall asleep over their leases,
speak for leases that are not theirs, and change what others are at. Meanwhile sessions of the daemons are ended in the
midst of their statements, and one daemon is killed. An answer of 503, or none, says nothing about what was done
(`Unknown`); a completion is repeated until its answer is definite. What was answered is kept in the `Ledger`, by which
the database is judged afterwards.

Whatever a client does by chance it does by its own `Random`, made of the seed and its name, so that the same seed sends
out the same clients, if not in the same order.
"""

import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Self

import httpx
import trio
from bloomd_process import KEY

from bloomd.errors import Unavailable
from bloomd.postgres import Pool
from bloomd.runtime.database import Database
from bloomd.runtime.model import Retry
from bloomd.runtime.sweeper import Rules, Sweeper

# As short as a lease may be: whoever falls asleep over one loses it within the storm.
TTL_SECONDS = 5

OFFLINE_SECONDS = 5

# Rarely enough that some leases are not swept yet when their workers wake up.
SWEEP_SECONDS = 0.8

RETRY = Retry(first_seconds=0.2, max_seconds=1.0)

WORKERS = {
    "w0": {"max_concurrency": 8, "labels": ["gpu"]},
    "w1": {"max_concurrency": 4, "labels": []},
    "w2": {"max_concurrency": 12, "labels": ["gpu", "big"]},
    "w3": {"max_concurrency": 1, "labels": []},
    "w4": {"max_concurrency": 6, "labels": [], "sessions": True},
    "w5": {"max_concurrency": 6, "labels": ["gpu"], "sessions": True},
    # These two nobody names for so long that they are offline; and then everybody does at once.
    "hermit": {"max_concurrency": 8, "labels": []},
    "sleeper": {"max_concurrency": 8, "labels": []},
}
BUSY = ("w0", "w1", "w2", "w3", "w4", "w5")

DONE = {"cancel": "task.cancelled", "requeue": "task.requeued"}


class Unknown(Exception):
    """Whether it was done is not known."""


@dataclass(frozen=True)
class Held:
    lease_id: str
    task_id: str
    worker_id: str
    expires_at: int


@dataclass
class Ledger:
    """What the daemons have said, and what they should not have said."""

    created: set[str] = field(default_factory=set)
    leased: set[str] = field(default_factory=set)
    results: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    """The results, each with its artifact, that were told of the lease that was named."""
    unnamed: set[tuple[str, str]] = field(default_factory=set)
    """Those that were told to who named no lease."""
    refused: set[str] = field(default_factory=set)
    """Leases whose completion was refused for good."""
    done: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often an action on a task, as the audit trail names it, was answered with success."""
    violations: list[str] = field(default_factory=list)

    def lease(self, lease: dict[str, Any]) -> Held:
        if lease["id"] in self.leased:
            self.violations.append(f"lease {lease['id']} was given twice")
        self.leased.add(lease["id"])
        return Held(lease["id"], lease["task_id"], lease["worker_id"], lease["expires_at"])

    def completed(self, held: Held, result_id: str, artifact_id: str) -> None:
        told = self.results.setdefault(held.lease_id, set())
        told.add((result_id, artifact_id))
        if len(told) > 1:
            self.violations.append(f"the completion of lease {held.lease_id} had two answers: {told}")
        if held.lease_id in self.refused:
            self.violations.append(f"lease {held.lease_id} was completed after it had been refused")

    def refuse(self, held: Held, why: str) -> None:
        self.refused.add(held.lease_id)
        if held.lease_id in self.results:
            self.violations.append(f"lease {held.lease_id} was refused after it had been completed: {why}")


class Storm:
    def __init__(self, urls: list[str], pool: Pool, seed: str) -> None:
        self.over = trio.Event()
        self.seed = seed
        self.ledger = Ledger()
        self.count: Counter[str] = Counter()
        self.backlog = 0
        """Tasks that have not ended, as of a moment ago: creators hold back when there are many."""
        self.recent: deque[str] = deque(maxlen=60)
        self.leases: deque[Held] = deque(maxlen=200)
        self.database = Database()
        self.database.open(pool)
        self.sweeper = Sweeper(
            self.database, lambda: Rules(interval=1.0, offline_after=OFFLINE_SECONDS, retry=RETRY, mirrored=False)
        )
        self.http = [
            httpx.AsyncClient(
                base_url=f"{url}/api/runtime",
                headers={"X-Runtime-API-Key": KEY},
                timeout=30,
                verify=False,
                trust_env=False,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=50),
            )
            for url in urls
        ]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for http in self.http:
            await http.aclose()

    async def rage(self, *, also: list[Callable[[], Awaitable[None]]]) -> None:
        """Send all clients out until one of those `also` there says that it is over; all have come back then."""
        async with trio.open_nursery() as nursery:
            for kind, number, pause in CLIENTS:
                for place in range(number):
                    nursery.start_soon(self._client, kind, place, pause)
            for each in also:
                nursery.start_soon(each)

    async def is_over_within(self, seconds: float) -> bool:
        with trio.move_on_after(seconds):
            await self.over.wait()
        return self.over.is_set()

    async def _client(
        self, kind: "Callable[[Storm, Random, int], Awaitable[None]]", place: int, pause: tuple[float, float]
    ) -> None:
        chance = Random(f"{self.seed} {kind.__name__} {place}")
        while not self.over.is_set():
            with suppress(Unknown):
                await kind(self, chance, place)
            await trio.sleep(chance.uniform(*pause))

    async def ask(
        self, chance: Random, method: str, path: str, body: object = None, *, at: int | None = None
    ) -> httpx.Response:
        """Ask one of the daemons, once.

        Raises:
            Unknown: it did not answer, or could not say.
        """
        http = self.http[at] if at is not None else chance.choice(self.http)
        try:
            response = await http.request(method, path, json=body)
        except httpx.TransportError as error:
            self.count["no answer"] += 1
            raise Unknown(f"{method} {path}: {error!r}") from error
        self.count[f"answers {response.status_code}"] += 1
        if response.status_code == 503 and kind_of(response) != "no-worker":
            raise Unknown(response.text)
        if response.status_code not in (200, 201, 404, 409, 503):
            self.ledger.violations.append(f"{method} {path} was answered {response.status_code}: {response.text}")
        return response

    async def insist(
        self, chance: Random, method: str, path: str, body: object = None, *, at: int | None = None
    ) -> httpx.Response:
        """Ask until there is a definite answer; sometimes somebody else has hung up on the same request before."""
        if chance.random() < 0.1:
            with suppress(Unknown), trio.move_on_after(chance.expovariate(100)):
                await self.ask(chance, method, path, body, at=at)
        while True:
            with suppress(Unknown):
                return await self.ask(chance, method, path, body, at=at)
            await trio.sleep(chance.uniform(0.02, 0.3))

    async def register(self, chance: Random, worker: str) -> None:
        capabilities = {"claude_cli": True, **WORKERS[worker]}
        await self.insist(chance, "POST", "/workers", {"name": worker, "capabilities": capabilities})


def kind_of(response: httpx.Response) -> str:
    """The last word of a problem's type."""
    return response.json().get("type", "").rpartition(":")[2]


def new_task(chance: Random) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": "x",
        "agent_slug": chance.choice(["bulk", "single", "single", ""]),
        "context_id": chance.choice(["", "", "c1", "c2", "c3"]),
        "max_attempts": chance.randint(1, 4),
        "priority": chance.choice([0, 0, 5]),
        "labels": chance.choice([[], [], [], ["gpu"]]),
    }
    if chance.random() < 0.05:
        body["pinned_worker_id"] = chance.choice(BUSY)
    if chance.random() < 0.1:
        body["not_before"] = int(epoch_ms() + chance.uniform(0, 2000))
    return body


def epoch_ms() -> float:
    return time.time() * 1000


async def create(storm: Storm, chance: Random, _: int) -> None:
    """One task or some; with idempotency keys at both daemons at once, until both have answered."""
    if storm.backlog > 300:
        return
    bodies = [new_task(chance) for _ in range(chance.choice([1, 1, chance.randint(2, 12)]))]
    if chance.random() < 0.7:
        response = await storm.ask(chance, "POST", "/llm-tasks", bodies)
        created = [{task["id"] for task in response.json()}]
    else:
        for body in bodies:
            body["idempotency_key"] = f"key-{chance.getrandbits(64):x}"
        created = []

        async def at(place: int) -> None:
            answer = await storm.insist(chance, "POST", "/llm-tasks", bodies, at=place)
            created.append({task["id"] for task in answer.json()})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(at, 0)
            nursery.start_soon(at, 1)
        if created[0] != created[1]:
            storm.ledger.violations.append(f"two tasks of one idempotency key: {created}")
    storm.ledger.created.update(*created)
    storm.recent.extend(created[0])


async def claim(storm: Storm, chance: Random, place: int) -> None:
    """Wait for tasks, sometimes not to the end; then work at them, forget them, or fall asleep over them."""
    worker = BUSY[place % len(BUSY)]
    asked = {
        "worker_id": worker,
        "max": chance.randint(1, 8),
        "wait_seconds": chance.choice([0, 0.3, 1, 3]),
        "ttl_seconds": TTL_SECONDS,
    }
    answer = None
    with trio.move_on_after(chance.uniform(0.01, 0.5) if chance.random() < 0.25 else 30):
        answer = await storm.ask(chance, "POST", "/leases/claim", asked)
    if answer is None:
        storm.count["claims hung up on"] += 1
        return
    if answer.status_code == 404:
        await storm.register(chance, worker)
    if answer.status_code != 200:
        return
    held = [storm.ledger.lease(each["lease"]) for each in answer.json()["leases"]]
    storm.leases.extend(held)
    if not held:
        return
    match chance.choices(["work", "forget", "oversleep"], [85, 9, 6])[0]:
        case "forget":
            storm.count["leases forgotten"] += len(held)
        case "oversleep":
            wakes_up_at = max(each.expires_at for each in held) + chance.uniform(-100, 600)
            await trio.sleep(max(0.0, wakes_up_at - epoch_ms()) / 1000)
            await complete_many(storm, chance, held)
        case _:
            await work(storm, chance, held)


async def work(storm: Storm, chance: Random, held: list[Held]) -> None:
    """Heartbeats, and each lease ended in one way or another."""
    for _ in range(chance.randint(0, 2)):
        await trio.sleep(chance.uniform(0, 0.2))
        beats = [{"lease_id": each.lease_id, "progress": chance.randint(0, 100)} for each in held]
        with suppress(Unknown):
            await storm.ask(chance, "POST", "/leases/heartbeat", beats)
    chance.shuffle(held)
    given_back = held[: chance.choice([0, 0, 1, 2])]
    rest = held[len(given_back) :]
    if given_back:
        await release(storm, chance, given_back)
    if chance.random() < 0.3:
        for each in rest:
            await complete(storm, chance, each)
    elif rest:
        await complete_many(storm, chance, rest)


async def release(storm: Storm, chance: Random, held: list[Held]) -> None:
    asked = [{"lease_id": each.lease_id, "retry_after_seconds": chance.choice([None, 0, 0.5])} for each in held]
    answer = await storm.insist(chance, "POST", "/leases/release", asked)
    for each, outcome in zip(held, answer.json(), strict=True):
        if outcome["ok"]:
            storm.ledger.done["task.released", each.task_id] += 1
            storm.ledger.refuse(each, "it was given back")


def completion(chance: Random, held: Held) -> dict[str, Any]:
    said = {"lease_id": held.lease_id, "output": f"of {held.lease_id}", "metrics": {"duration_ms": 1}}
    if chance.random() < 0.7:
        return {**said, "status": "success"}
    return {**said, "status": "error", "error_message": "no", "retryable": chance.random() < 0.8}


async def complete(storm: Storm, chance: Random, held: Held) -> None:
    """By itself; sometimes at both daemons at once, and not with the same words."""
    at_both = chance.random() < 0.3
    async with trio.open_nursery() as nursery:
        for place in (0, 1) if at_both else (None,):
            nursery.start_soon(complete_at, storm, chance, held, place)
    if chance.random() < 0.3:
        await check_that_it_is_over(storm, chance, held)


async def complete_at(storm: Storm, chance: Random, held: Held, at: int | None) -> None:
    said = completion(chance, held)
    while True:
        answer = await storm.insist(chance, "POST", f"/llm-tasks/{held.task_id}/complete", said, at=at)
        if answer.status_code == 200:
            body = answer.json()
            storm.ledger.completed(held, body["result"]["id"], body["artifact"]["id"])
        elif kind_of(answer) in ("lease-lost", "cancelled"):
            storm.ledger.refuse(held, answer.text)
        elif kind_of(answer) == "conflict":
            continue  # it changed hands too quickly
        else:
            storm.ledger.violations.append(f"the completion of lease {held.lease_id}: {answer.text}")
        break


async def complete_many(storm: Storm, chance: Random, held: list[Held]) -> None:
    said = {each.lease_id: completion(chance, each) for each in held}
    left = held
    while left:
        answer = await storm.insist(chance, "POST", "/leases/complete", [said[each.lease_id] for each in left])
        again = []
        for each, outcome in zip(left, answer.json(), strict=True):
            word = outcome.get("type", "").rpartition(":")[2]
            if outcome["ok"]:
                storm.ledger.completed(each, outcome["result_id"], outcome["artifact_id"])
            elif word in ("lease-lost", "cancelled"):
                storm.ledger.refuse(each, outcome["error"])
            elif word == "conflict":
                again.append(each)
            else:
                storm.ledger.violations.append(f"the completion of lease {each.lease_id}: {outcome}")
        left = again
    if chance.random() < 0.3:
        await check_that_it_is_over(storm, chance, chance.choice(held))


async def check_that_it_is_over(storm: Storm, chance: Random, held: Held) -> None:
    """No lease says anything new once its end, or its refusal, was acknowledged; at whichever daemon."""
    path = f"/llm-tasks/{held.task_id}"
    beat = await storm.insist(chance, "POST", f"{path}/heartbeat", {"lease_id": held.lease_id})
    if beat.status_code == 200:
        storm.ledger.violations.append(f"lease {held.lease_id} was over and had a heartbeat: {beat.text}")
    back = await storm.insist(chance, "POST", "/leases/release", [{"lease_id": held.lease_id}])
    if back.json()[0]["ok"]:
        storm.ledger.violations.append(f"lease {held.lease_id} was over and was given back: {back.text}")
    again = {"lease_id": held.lease_id, "status": "success", "output": "something else"}
    answer = await storm.insist(chance, "POST", f"{path}/complete", again)
    if answer.status_code == 200:
        body = answer.json()
        storm.ledger.completed(held, body["result"]["id"], body["artifact"]["id"])
    elif held.lease_id in storm.ledger.results and kind_of(answer) != "conflict":
        storm.ledger.violations.append(f"lease {held.lease_id} was completed, and then: {answer.text}")


async def take_one(storm: Storm, chance: Random, _: int) -> None:
    """The single routes, as old clients use them: a task by its id, and often without any proof."""
    if not storm.recent:
        return
    task = chance.choice(storm.recent)
    asked = {"ttl_seconds": TTL_SECONDS, **chance.choice([{}, {}, {"worker_id": chance.choice(BUSY)}])}
    answer = await storm.ask(chance, "POST", f"/llm-tasks/{task}/lease", asked)
    if answer.status_code != 201:
        return
    held = storm.ledger.lease(answer.json()["lease"])
    storm.leases.append(held)
    for _ in range(chance.randint(0, 2)):
        await trio.sleep(chance.uniform(0, 0.2))
        proof = chance.choice([{}, {"lease_id": held.lease_id}, {"worker_id": held.worker_id}])
        with suppress(Unknown):
            await storm.ask(chance, "POST", f"/llm-tasks/{task}/heartbeat", proof)
    if chance.random() < 0.1:
        storm.count["leases forgotten"] += 1
    elif chance.random() < 0.5:
        await complete(storm, chance, held)
    else:
        said = {"status": "success", "output": "of somebody"}
        answer = await storm.ask(chance, "POST", f"/llm-tasks/{task}/complete", said)
        if answer.status_code == 200:
            body = answer.json()
            storm.ledger.unnamed.add((body["result"]["id"], body["artifact"]["id"]))


async def usurp(storm: Storm, chance: Random, _: int) -> None:
    """Speak for a task by the lease of another one, or by one that is long over."""
    if len(storm.leases) < 2:
        return
    one, other = chance.sample(list(storm.leases), 2)
    if one.task_id == other.task_id:
        return
    said = {"status": "success", "output": "stolen", "lease_id": other.lease_id}
    for path in ("heartbeat", "complete"):
        body = said if path == "complete" else {"lease_id": other.lease_id}
        answer = await storm.ask(chance, "POST", f"/llm-tasks/{one.task_id}/{path}", body)
        if answer.status_code == 200:
            storm.ledger.violations.append(f"task {one.task_id} took the lease of another one: {answer.text}")


async def race(storm: Storm, chance: Random, _: int) -> None:
    """A new task is leased, cancelled and queued again by many at the same moment."""
    body = new_task(chance) | {"agent_slug": chance.choice(["bulk", "single"])}
    task = (await storm.ask(chance, "POST", "/llm-tasks", body)).json()["id"]
    storm.ledger.created.add(task)

    async def lease() -> None:
        answer = await storm.ask(chance, "POST", f"/llm-tasks/{task}/lease", {"ttl_seconds": TTL_SECONDS})
        if answer.status_code == 201:
            await complete(storm, chance, storm.ledger.lease(answer.json()["lease"]))

    async def say(word: str) -> None:
        answer = await storm.ask(chance, "POST", f"/llm-tasks/{task}/{word}")
        if answer.status_code == 200:
            storm.ledger.done[DONE[word], task] += 1

    async def cancel_in_bulk() -> None:
        if body["agent_slug"] == "bulk":
            await storm.ask(chance, "POST", "/llm-tasks/cancel", {"filter": {"agent_slug": "bulk"}})

    async def attempt(act: Callable[[], Awaitable[None]]) -> None:
        with suppress(Unknown):
            await act()

    acts = [lease, lease, partial(say, "cancel"), partial(say, "cancel"), partial(say, "requeue"), cancel_in_bulk] * 2
    chance.shuffle(acts)
    async with trio.open_nursery() as nursery:
        for act in acts:
            nursery.start_soon(attempt, act)


async def meddle(storm: Storm, chance: Random, _: int) -> None:
    """Cancel a task, queue one again, or look at one."""
    if not storm.recent:
        return
    task = chance.choice(storm.recent)
    word = chance.choices(["cancel", "requeue", "explain"], [1, 3, 1])[0]
    if word == "explain":
        await storm.ask(chance, "GET", f"/llm-tasks/{task}/explain")
        return
    answer = await storm.ask(chance, "POST", f"/llm-tasks/{task}/{word}")
    if answer.status_code == 200:
        storm.ledger.done[DONE[word], task] += 1


async def meddle_in_bulk(storm: Storm, chance: Random, _: int) -> None:
    """Only with the tasks of one agent: a bulk action leaves no entry in a task's own trail."""
    word, status = chance.choice(
        [("requeue", None), ("requeue", ["dead", "failed"]), ("cancel", "queued"), ("cancel", ["leased", "running"])]
    )
    filter = {"agent_slug": "bulk", **({"status": status} if status else {})}
    await storm.ask(chance, "POST", f"/llm-tasks/{word}", {"filter": filter})


async def hold_back(storm: Storm, chance: Random, place: int) -> None:
    """Cordon a worker for a while, drain it, or take it away by force."""
    worker = BUSY[place % len(BUSY)]
    match chance.choice(["cordon", "drain", "force", "gently"]):
        case "force":
            await storm.ask(chance, "DELETE", f"/workers/{worker}?force=true")
        case "gently":
            await storm.ask(chance, "DELETE", f"/workers/{worker}")
        case word:
            await storm.ask(chance, "POST", f"/workers/{worker}/{word}")
    await trio.sleep(chance.uniform(0, 0.4))
    await storm.register(chance, worker)
    await storm.insist(chance, "POST", f"/workers/{worker}/uncordon")


async def pause(storm: Storm, chance: Random, _: int) -> None:
    until = chance.choice([None, int(epoch_ms()) + 10_000])
    await storm.ask(chance, "POST", "/queue", {"paused": True, "until": until, "reason": "a storm"})
    await trio.sleep(chance.uniform(0, 0.4))
    await storm.insist(chance, "POST", "/queue", {"paused": False})


async def wake(storm: Storm, chance: Random, _: int) -> None:
    """Many at once speak for a worker that has fallen silent: it comes online once."""
    held: list[Held] = []

    async def lease(task: str) -> None:
        with suppress(Unknown):
            asked = {"worker_id": "hermit", "ttl_seconds": TTL_SECONDS}
            answer = await storm.ask(chance, "POST", f"/llm-tasks/{task}/lease", asked)
            if answer.status_code == 201:
                held.append(storm.ledger.lease(answer.json()["lease"]))

    async def ask_for_any(_: str) -> None:
        with suppress(Unknown):
            asked = {"worker_id": "sleeper", "max": 2, "ttl_seconds": TTL_SECONDS}
            answer = await storm.ask(chance, "POST", "/leases/claim", asked)
            if answer.status_code == 200:
                held.extend(storm.ledger.lease(each["lease"]) for each in answer.json()["leases"])

    async with trio.open_nursery() as nursery:
        for task in list(storm.recent)[-8:]:
            nursery.start_soon(lease, task)
            nursery.start_soon(ask_for_any, task)
    if held:
        await complete_many(storm, chance, held)


async def sweep(storm: Storm, chance: Random, _: int) -> None:
    """As a node would that leads, or believes it; now and then it is interrupted. All do it at the same moments."""
    await trio.sleep(SWEEP_SECONDS - trio.current_time() % SWEEP_SECONDS)
    with suppress(Unavailable), trio.move_on_after(chance.expovariate(50) if chance.random() < 0.3 else 30):
        async with storm.database.transaction() as connection:
            row = await (await connection.execute("SELECT epoch FROM leaders")).fetchone()
        if row is None:
            return
        await storm.sweeper.sweep(row[0])
        if await storm.sweeper.sweep(row[0] - 1):
            storm.ledger.violations.append(f"epoch {row[0] - 1} was over, and ended leases")


# Each kind, how many there are of it, and the shortest and longest pause between two of their acts, in seconds.
CLIENTS: list[tuple[Callable[[Storm, Random, int], Awaitable[None]], int, tuple[float, float]]] = [
    (create, 6, (0.0, 0.4)),
    (claim, 18, (0.0, 0.2)),
    (take_one, 8, (0.0, 0.2)),
    (race, 3, (0.0, 0.3)),
    (usurp, 2, (0.0, 0.3)),
    (meddle, 4, (0.0, 0.3)),
    (meddle_in_bulk, 1, (0.5, 1.5)),
    (hold_back, 2, (0.5, 1.5)),
    (pause, 1, (1.0, 3.0)),
    (wake, 1, (OFFLINE_SECONDS + 1.5, OFFLINE_SECONDS + 2.5)),
    (sweep, 4, (0.0, 0.0)),
]
