"""How long an operator waits for `bloomd-ctl`, also when PostgreSQL is gone."""

import subprocess
import sys
import time

from bloomd_process import BIN
from servers import eventually

from bench.measure import Row, spread
from bench.rig import rig

RUNS = 30


def measure() -> list[Row]:
    with rig() as (server, bloomd):
        ctl = [str(BIN / "bloomd-ctl"), "-s", str(bloomd.socket)]
        rows = [_row(f"bloomd-ctl {method}", [*ctl, method]) for method in ("ping", "status")]
        server.stop()
        eventually(lambda: not bloomd.is_ready())
        rows += [_row(f"bloomd-ctl {method}, PostgreSQL stopped", [*ctl, method]) for method in ("ping", "status")]
        return [*rows, _row("python -c pass, to compare", [sys.executable, "-c", "pass"])]


def _row(what: str, command: list[str]) -> Row:
    times: list[float] = []
    for _ in range(RUNS):
        began = time.monotonic()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        times.append(time.monotonic() - began)
    return {"what": what, **spread(times)}
