from collections.abc import AsyncIterator

import pytest
from peers import MembridgePeer, membridge_peer

from bloomd.membridge.client import MembridgeClient
from bloomd.supervisor import Backoff

KEY = "the-admin-key-of-the-tests"
# The retries of a real server's client are waited for in real time; their true pauses are tested on the mock clock.
IMPATIENT = Backoff(first=0.001, cap=0.002)


@pytest.fixture
async def peer() -> AsyncIterator[MembridgePeer]:
    async with membridge_peer(key=KEY) as peer:
        yield peer


@pytest.fixture
def client(peer: MembridgePeer) -> MembridgeClient:
    return MembridgeClient(peer.url, KEY, timeout=1.0, retry=IMPATIENT)
