"""What is measured, and how it is shown: CPU and memory of other processes by /proc, medians, tables."""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

Row = dict[str, str | float]


def cpu_seconds(process: int) -> float:
    """What a process has used since its start, with its children: those that live and those that have ended."""
    used = 0.0
    for each in [str(process), *Path(f"/proc/{process}/task/{process}/children").read_text().split()]:
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # has just ended: its parent has its time
            continue
        used += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return used / os.sysconf("SC_CLK_TCK")


def rss_mb(process: int) -> float:
    """What a process has in memory."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def spread(seconds: Sequence[float]) -> Row:
    """Median, least and most of several runs, in milliseconds."""
    several = {"median ms": statistics.median(seconds), "min ms": min(seconds), "max ms": max(seconds)}
    return {**{name: value * 1000 for name, value in several.items()}, "runs": len(seconds)}


def table(rows: Sequence[Row]) -> str:
    """Figures have three digits, or all that are before the point."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([_cell(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip() for cells in lines
    )


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.0f}" if value >= 100 else f"{value:.3g}"
