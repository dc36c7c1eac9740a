"""`python -m bench [NAME ...] [-o FILE]`: print a table for each subject, and keep the figures as JSON."""

import argparse
import importlib
import json
import os
import subprocess
import time
from pathlib import Path

from bench import ROOT
from bench.measure import table

SUBJECTS = ("start", "ctl", "http", "wake", "history", "fleet", "page", "sync", "outage", "objects", "backup")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure bloomd on this machine.")
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"only these: {', '.join(SUBJECTS)}")
    parser.add_argument(
        "-o", metavar="FILE", type=Path, help="where the figures go, instead of bench/results/TIME.json"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(SUBJECTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; choose from {', '.join(SUBJECTS)}")
    figures = {}
    for name in options.names or SUBJECTS:
        before = os.getloadavg()[0]
        rows = importlib.import_module(f"bench.{name}").measure()
        load = f"{before:.1f} to {os.getloadavg()[0]:.1f}"
        print(f"\n{name} ({os.cpu_count()} cores, load {load})\n\n{table(rows)}", flush=True)
        figures[name] = {"load": load, "rows": rows}
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    file = options.o or ROOT / "bench" / "results" / f"{at}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"at": at, "commit": commit.stdout.strip(), **figures}, indent=2) + "\n")
    print(f"\nkept in {file}")


if __name__ == "__main__":
    main()
