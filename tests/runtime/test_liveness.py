"""Who is online, and what Membridge's list changes and leaves alone (contract, sections 2 and 5)."""

import pytest

from bloomd.membridge.agents import Agent
from bloomd.membridge.polls import PollResult
from bloomd.runtime import audit, leases, liveness, workers
from bloomd.runtime.heartbeats import Beat, heartbeat
from bloomd.runtime.pages import Page

MINUTE = 60_000


async def fleet(db):
    return {worker.id: worker for worker in await workers.listing(db, Page())}


@pytest.fixture
def mirror(db, epoch):
    async def mirror(*agents):
        return await liveness.mirror(db, agents, epoch, offline_after=60)

    return mirror


async def test_an_agent_becomes_a_worker(db, mirror):
    agent = Agent(
        id="w1",
        url="http://10.0.0.1:8001",
        status="online",
        capabilities={"claude_cli": True, "max_concurrency": 4, "labels": ["arm64"], "gpu": "none"},
        last_seen_ms=1_700_000_000_500,
        ip_addrs=["10.0.0.1"],
        obs_count=7,
        db_sha="abc",
    )
    done = await mirror(agent)
    assert (done.added, done.changed, done.offline) == (1, 0, 0)
    worker = (await fleet(db))["w1"]
    assert (worker.source, worker.status, worker.node_id, worker.url) == ("membridge", "online", "w1", agent.url)
    assert worker.capabilities == agent.capabilities
    assert (worker.last_heartbeat, worker.obs_count, worker.db_sha) == (1_700_000_000_500, 7, "abc")


async def test_what_is_not_sent_keeps_what_is_known(db, new_worker, new_task, mirror):
    await new_worker("w1", max_concurrency=7, labels=["gpu"], url="http://10.0.0.9:8001", ip_addrs=["10.0.0.9"])
    await leases.lease(db, (await new_task()).id, actor="test")
    before = (await fleet(db))["w1"]
    assert await mirror(Agent(id="w1")) == liveness.Mirrored(added=0, changed=0, offline=0)
    assert await mirror(Agent(id="w1", status="unknown")) == liveness.Mirrored(added=0, changed=0, offline=0)
    assert (await fleet(db))["w1"] == before
    done = await mirror(Agent(id="w1", capabilities={"max_concurrency": 8}))
    assert done.changed == 1
    after = (await fleet(db))["w1"]
    assert after.capabilities == {"claude_cli": True, "max_concurrency": 8, "labels": ["gpu"]}
    assert (after.active_leases, after.source, after.status) == (1, "direct", "online")


async def test_an_unchanged_round_writes_nothing_but_heartbeat_times(db, sql, mirror):
    agents = [Agent(id=f"w{n}", status="online", last_seen_ms=1000 + n) for n in range(50)]
    await mirror(*agents)
    audited = sql("SELECT count(*) FROM audit_logs")
    assert await mirror(*agents) == liveness.Mirrored(added=0, changed=0, offline=0)
    assert sql("SELECT count(*) FROM audit_logs") == audited
    later = [Agent(id=f"w{n}", status="online", last_seen_ms=2000 + n) for n in range(50)]
    assert (await mirror(*later)).changed == 0
    assert (await fleet(db))["w7"].last_heartbeat == 2007


async def test_a_worker_of_membridge_goes_offline_when_it_is_gone_from_the_list(db, shift_clock, mirror):
    await mirror(Agent(id="w1", status="online"), Agent(id="w2", status="online"), Agent(id="w3", status="unknown"))
    assert (await mirror(Agent(id="w2", status="online"))).offline == 0
    shift_clock(MINUTE + 1000)
    done = await mirror(Agent(id="w2", status="online"))
    assert done.offline == 2
    assert {id: worker.status for id, worker in (await fleet(db)).items()} == {
        "w1": "offline",
        "w2": "online",
        "w3": "offline",
    }
    assert (await mirror(Agent(id="w1", status="online"))).changed == 1
    assert (await fleet(db))["w1"].status == "online"


async def test_something_else_can_vouch_for_it(db, shift_clock, mirror, epoch):
    await mirror(Agent(id="w1", status="online", url="http://10.0.0.1:8001"))
    shift_clock(MINUTE + 1000)
    await liveness.record_polls(db, [PollResult(id="w1", ok=True, version="2.0", os_info="Alpine")], epoch)
    assert (await mirror()).offline == 0
    worker = (await fleet(db))["w1"]
    assert (worker.status, worker.agent_version, worker.os_info) == ("online", "2.0", "Alpine")


async def test_membridge_saying_offline_is_believed_unless_we_hear_it_ourselves(db, new_worker, shift_clock, mirror):
    await new_worker("w1")
    await mirror(Agent(id="w1", status="offline"))
    assert (await fleet(db))["w1"].status == "online"
    shift_clock(MINUTE + 1000)
    await mirror(Agent(id="w1", status="offline"))
    assert (await fleet(db))["w1"].status == "offline"


async def test_a_silent_worker_goes_offline_and_a_membridge_outage_takes_nobody_offline(
    db, new_worker, shift_clock, mirror, epoch
):
    await new_worker("direct")
    await mirror(Agent(id="mirrored", status="online"))
    assert await liveness.mark_silent(db, offline_after=60, mirrored=True, epoch=epoch) == []
    shift_clock(MINUTE + 1000)
    assert await liveness.mark_silent(db, offline_after=60, mirrored=True, epoch=epoch) == ["direct"]
    assert (await fleet(db))["mirrored"].status == "online"
    assert await liveness.mark_silent(db, offline_after=60, mirrored=False, epoch=epoch) == ["mirrored"]


async def test_a_lease_that_names_a_worker_is_its_sign_of_life(db, new_worker, new_task, shift_clock, epoch):
    await new_worker("w1")
    shift_clock(MINUTE + 1000)
    await liveness.mark_silent(db, offline_after=60, mirrored=False, epoch=epoch)
    leased = await leases.lease(db, (await new_task()).id, worker_id="w1", actor="test")
    assert leased.worker.status == "online"
    actions = [entry.action for entry in await audit.listing(db, Page(), entity_id="w1")]
    assert actions == ["worker.online", "worker.offline", "worker.registered"]


async def test_a_heartbeat_brings_a_worker_back(db, new_worker, new_task, shift_clock, epoch):
    await new_worker("w1")
    task = await new_task()
    await leases.lease(db, task.id, actor="test")
    shift_clock(MINUTE + 1000)
    await liveness.mark_silent(db, offline_after=60, mirrored=False, epoch=epoch)
    await heartbeat(db, task.id, Beat(), actor="test")
    assert (await fleet(db))["w1"].status == "online"
    assert len(await audit.listing(db, Page(), action="worker.online")) == 1
    assert await liveness.mark_silent(db, offline_after=60, mirrored=False, epoch=epoch) == []


async def test_a_poll_that_failed_changes_nothing(db, new_worker, epoch):
    await new_worker("w1", url="http://10.0.0.1:8001")
    before = await fleet(db)
    await liveness.record_polls(
        db, [PollResult(id="w1", ok=False, error="refused"), PollResult(id="gone", ok=True)], epoch
    )
    assert await fleet(db) == before
    assert [(target.id, target.url) for target in await liveness.with_url(db)] == [("w1", "http://10.0.0.1:8001")]


async def test_what_is_said_of_a_worker_does_not_grow_without_end(db, new_worker, mirror, epoch):
    await new_worker("w1")
    for n in range(8):
        extra = {f"poll{n}": "x" * 9000}
        await liveness.record_polls(db, [PollResult(id="w1", ok=True, version=f"{n}", capabilities=extra)], epoch)
        await mirror(Agent(id="w1", obs_count=n, capabilities={f"agent{n}": "x" * 5000}))
    worker = (await fleet(db))["w1"]
    assert len(str(worker.capabilities)) <= 64 * 1024
    assert {"poll3", "agent3", "labels"} < set(worker.capabilities)
    assert (worker.agent_version, worker.obs_count) == ("7", 7)
    await mirror(Agent(id="w1", capabilities={"poll3": None, "labels": ["gpu"]}))
    assert (await fleet(db))["w1"].capabilities["labels"] == ["gpu"]


async def test_a_new_url_has_a_clean_account(db, new_worker, mirror, sql):
    """Until it is found to be wrong as well."""
    await new_worker("w1", url="http://10.0.0.1:8001")
    await new_worker("w2", url="http://10.0.0.2:8001")
    sql("UPDATE workers SET unreached = 3")
    await new_worker("w1", url="http://10.0.0.1:8001")
    await mirror(Agent(id="w2", url="http://10.0.0.2:8001", obs_count=1))
    assert sql("SELECT unreached FROM workers") == [(3,), (3,)]
    await new_worker("w1")
    await mirror(Agent(id="w2", obs_count=2))
    assert sql("SELECT unreached FROM workers") == [(3,), (3,)]
    await new_worker("w1", url="http://10.0.0.3:8001")
    await mirror(Agent(id="w2", url="http://10.0.0.4:8001"))
    assert sql("SELECT unreached FROM workers") == [(0,), (0,)]
