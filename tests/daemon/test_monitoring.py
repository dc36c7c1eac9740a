"""What Prometheus sees on a bad day, and whether what the README tells it to look at is there."""

import re
from pathlib import Path

import httpx
import pytest
import trio
import yaml
from figures import Figures
from peers import membridge_peer, new_agent
from servers import DEADLINE_SECONDS, eventually, free_port

README = (Path(__file__).parents[2] / "README.md").read_text()
MONITORING = README.partition("## Monitoring")[2].partition("\n## ")[0]
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", MONITORING, re.DOTALL)]
RULES = [rule for block in BLOCKS for group in block.get("groups", ()) for rule in group["rules"]]

OF_THE_DATABASE = {
    "bloomd_tasks",
    "bloomd_oldest_queued_seconds",
    "bloomd_queue_paused",
    "bloomd_active_leases",
    "bloomd_leases_rescued_last_hour",
    "bloomd_workers",
    "bloomd_objects_to_move",
    "bloomd_objects_to_move_bytes",
    "bloomd_objects_to_remove",
    "bloomd_capacity",
}


def scrape(daemon):
    answer = daemon.http.get("/metrics")
    assert answer.status_code == 200
    return Figures(answer.text)


@pytest.fixture
async def mirroring(bloomd, tmp_path):
    """A daemon that mirrors a Membridge and makes backups, and that Membridge."""
    async with membridge_peer() as peer:
        peer.agents = [new_agent("w1")]
        daemon = bloomd(
            membridge__server_url=peer.url,
            membridge__sync_interval=0.2,
            backup__schedule="03:30",
            backup__directory=str(tmp_path / "backups"),
        )
        await trio.to_thread.run_sync(daemon.start)
        yield daemon, peer


async def figures(daemon, *, until):
    """A scrape for which this holds."""
    with trio.fail_after(DEADLINE_SECONDS):
        while True:
            found = await trio.to_thread.run_sync(scrape, daemon)
            if until(found):
                return found
            await trio.sleep(0.05)


def has_sync(found):
    return "bloomd_membridge_sync_age_seconds" in found.names


def has_both_ages(found):
    return has_sync(found) and "bloomd_backup_verified_age_seconds" in found.names


async def test_everything_the_readme_names_is_there(mirroring):
    daemon, _ = mirroring
    found = await figures(daemon, until=has_both_ages)
    named = set(re.findall(r"\bbloomd_\w+", MONITORING))
    assert len(named) > 20
    assert named - found.names - set(found.families) == set()
    for rule in RULES:
        for name, label, value in re.findall(r"(bloomd_\w+)\{(\w+)=\"(\w+)\"\}", rule["expr"]):
            assert value in {labels.get(label) for labels in found.labels(name)}, rule["alert"]


def test_the_rules_and_the_configuration_are_whole():
    assert len(RULES) == len({rule["alert"] for rule in RULES}) == 10
    for rule in RULES:
        assert rule.keys() <= {"alert", "expr", "for", "annotations"}
        assert rule["annotations"]["summary"]
    jobs = [job for block in BLOCKS for job in block.get("scrape_configs", ())]
    assert [job["job_name"] for job in jobs] == ["bloomd", "bloomd"]
    assert jobs[1]["authorization"]["type"] == "Bearer"
    assert all(job.get("metrics_path", "/metrics") == "/metrics" for job in jobs)


async def test_the_age_of_the_sync(mirroring):
    """It grows while Membridge says nothing of use, and begins anew with the next success."""
    daemon, peer = mirroring
    await figures(daemon, until=has_sync)
    peer.mode = "500"
    await figures(daemon, until=lambda found: found("bloomd_service_running", service="membridge-sync") == 0)
    await figures(daemon, until=lambda found: found("bloomd_probe_state", probe="membridge", state="down") == 1)
    stale = await figures(daemon, until=lambda found: found("bloomd_membridge_sync_age_seconds") > 1.5)
    peer.mode = "ok"
    fresh = await figures(daemon, until=lambda found: found("bloomd_membridge_sync_age_seconds") < 1)
    last = "bloomd_membridge_last_sync_timestamp_seconds"
    assert fresh(last) > stale(last)


def test_what_the_database_tells_is_left_out_while_it_is_away(bloomd, server):
    daemon = bloomd(server.create_database())
    daemon.start()
    before = scrape(daemon)
    assert before.names >= OF_THE_DATABASE
    server.stop()
    eventually(lambda: not scrape(daemon).names & OF_THE_DATABASE)
    assert before.names - scrape(daemon).names == OF_THE_DATABASE
    eventually(lambda: scrape(daemon)("bloomd_verdict", verdict="down") == 1)
    assert scrape(daemon)("bloomd_service_running", service="database") == 0
    eventually(lambda: scrape(daemon)("bloomd_probe_state", probe="postgresql", state="down") == 1)
    server.start()
    eventually(lambda: scrape(daemon).names >= OF_THE_DATABASE)


def test_a_daemon_that_never_had_a_database_is_scraped_too(bloomd):
    daemon = bloomd(f"postgresql://127.0.0.1:{free_port()}/none", migrate=False)
    daemon.start(ready=False)
    eventually(lambda: answers(daemon))
    found = scrape(daemon)
    assert found("bloomd_verdict", verdict="down") == 1
    assert found("bloomd_claims_total") == 0
    assert not found.names & OF_THE_DATABASE


def answers(daemon):
    try:
        return daemon.http.get("/api/runtime/health").status_code == 200
    except httpx.TransportError:
        return False
