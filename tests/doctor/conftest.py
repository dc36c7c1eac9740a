"""One healthy node for all tests of the doctor: everything that it looks at is there, and real."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import PostgresServer
from tools import require

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "packaging"), str(TESTS / "probes")]  # nginx_process, s3_server

from site_to_examine import Site, tell  # noqa: E402

from bloomd.doctor import case, checks, fact, front, gather, peers, process, proxy  # noqa: E402
from bloomd.exchange import trust  # noqa: E402

# A machine that does other things as well may be slow, and its event loops late.
PATIENCE = 20.0


@pytest.fixture(scope="session")
def whole_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    nginx, rclone = require("nginx"), require("rclone")
    assert nginx
    server = PostgresServer()
    for setting in ("fsync", "full_page_writes"):  # on, unless a test says otherwise; the command line would win
        del server._settings[setting]
    with server, Site(server, rclone, tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture
def site(whole_site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The same, whose certificates this process trusts; on a machine that is in no hurry."""
    whole_site.be_trusted(monkeypatch)
    for module in (checks, fact, front, gather, peers, proxy):
        monkeypatch.setattr(module, "SECONDS", PATIENCE)
    monkeypatch.setattr(case, "ASK_SECONDS", PATIENCE - 1)
    monkeypatch.setattr(process, "ARRIVES_SECONDS", PATIENCE - 2)
    tell(monkeypatch, {"process": {"loop_lag_worst_ms": 1.0}})
    yield whole_site
    trust.cache_clear()  # other tests trust other authorities
