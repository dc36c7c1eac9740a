"""A round of mirroring ten thousand agents: in the database alone, and by the daemon from a Membridge over HTTP."""

import json
import subprocess
import time
from collections import defaultdict
from typing import Any

import msgspec
import trio
from bloomd_process import BIN, Bloomd
from peers import membridge_peer, new_agent
from servers import eventually

from bench.measure import Row, spread
from bench.rig import rig
from bloomd.control.client import Client
from bloomd.membridge.agents import decode
from bloomd.postgres import Pool
from bloomd.runtime.database import Database
from bloomd.runtime.liveness import mirror

AGENTS = 10_000
RUNS = 3
# The daemon looks at its lag ten times a second, so every sample is seen.
SAMPLE_SECONDS = 0.05

Times = defaultdict[str, list[float]]


def measure() -> list[Row]:
    times, lags = Times(list), Times(list)
    for _ in range(RUNS):
        with rig() as (_, bloomd):
            trio.run(_mirror, bloomd.settings["database.url"], times)
        with rig() as (_, bloomd):
            trio.run(_sync, bloomd, times, lags)
    return [
        {"what": what, **spread(each), **({"worst loop lag ms": max(lags[what])} if what in lags else {})}
        for what, each in times.items()
    ]


def _rounds() -> dict[str, list[dict[str, Any]]]:
    seen = time.time() - 10

    def agents(**fields: Any) -> list[dict[str, Any]]:
        # Without a URL: the daemon's health polls of the workers are not what is measured here.
        return [new_agent(f"agent-{number}", url=None, **fields) for number in range(AGENTS)]

    return {
        "first": agents(last_seen=seen),
        "unchanged": agents(last_seen=seen),
        "heartbeats only": agents(last_seen=seen + 1),
        "all changed": agents(last_seen=seen + 1, obs_count=13),
    }


async def _mirror(url: str, times: Times) -> None:
    async with Pool(url, size=2) as pool:
        database = Database()
        database.open(pool)
        for what, agents in _rounds().items():
            decoded = decode(msgspec.json.encode(agents), now=time.time()).agents
            began = time.monotonic()
            await mirror(database, decoded, offline_after=60.0)
            times[f"mirror(), {what}"].append(time.monotonic() - began)


async def _sync(bloomd: Bloomd, times: Times, lags: Times) -> None:
    async with membridge_peer() as peer:
        # No round but ours: one that is under way would be waited for instead.
        bloomd.configure(membridge__server_url=peer.url, membridge__admin_key="any", membridge__sync_interval=3600)
        await trio.to_thread.run_sync(bloomd.ctl, "reload")
        await trio.to_thread.run_sync(eventually, lambda: bloomd.status()["sync"]["last_success"])
        for what, agents in _rounds().items():
            peer.agents = agents
            seconds, lag = await trio.to_thread.run_sync(_round, bloomd)
            times[f"bloomd-ctl sync, {what}"].append(seconds)
            lags[f"bloomd-ctl sync, {what}"].append(lag)


def _round(bloomd: Bloomd) -> tuple[float, float]:
    """The seconds of one round, and the worst lag of the daemon's event loop meanwhile in milliseconds."""
    command = [str(BIN / "bloomd-ctl"), "-s", str(bloomd.socket), "-o", "json", "sync"]
    lags: list[float] = []
    with Client(str(bloomd.socket)) as client, subprocess.Popen(command, stdout=subprocess.PIPE) as sync:
        after = 0
        while after < 3:  # a stall is noticed by the sample that comes after it
            time.sleep(SAMPLE_SECONDS)
            lags.append(client.call("ping")["loop_lag_ms"])
            after += sync.poll() is not None
        assert sync.stdout
        outcome = json.load(sync.stdout)
    assert outcome["agents"] == AGENTS, outcome
    return outcome["seconds"], max(lags)
