"""What one node has done to tasks and leases since it started: counters and histograms for Prometheus.

They are counted where the rules are carried out, after the statement has committed, so that they hold whoever asked:
a route, the sweeper, or code that knows no HTTP. Each node counts what it did itself; the sum over all is the truth.
"""

from collections.abc import Iterable
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from bloomd.runtime.model import AttemptOutcome, TaskStatus

FINAL: tuple[TaskStatus, ...] = ("completed", "failed", "dead", "cancelled")

# From a claim that was already waiting for the task to a task that waits, or runs, for as long as `timeout_sec` allows.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)

# `max_attempts` allows no more.
ATTEMPTS = tuple(range(1, 11))

# The library would add a series with the time of its creation to each of ours; Prometheus can tell a restart without.
disable_created_metrics()


class Meters:
    """Counts. Every series is there from the start, at 0, so that its first increase is seen as one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._created = Counter("bloomd_tasks_created", "Tasks that were queued here.", registry=self.registry)
        self._claims = Counter(
            "bloomd_claims", "Tasks that were handed to a worker, in whichever way.", registry=self.registry
        )
        self._rescued = Counter(
            "bloomd_leases_rescued",
            "Leases that were ended because the worker fell silent or the deadline passed.",
            registry=self.registry,
        )
        self._stranded = Counter(
            "bloomd_tasks_stranded", "Tasks that were found under way without a lease.", registry=self.registry
        )
        self._wait = Histogram(
            "bloomd_task_wait_seconds",
            "From the moment a task could be claimed to its lease.",
            buckets=SECONDS,
            registry=self.registry,
        )
        runs = Histogram(
            "bloomd_task_run_seconds",
            "From the start of an attempt to its end, by outcome.",
            ["outcome"],
            buckets=SECONDS,
            registry=self.registry,
        )
        attempts = Histogram(
            "bloomd_task_attempts",
            "Attempts that a task had when it came to its end, by final status.",
            ["status"],
            buckets=ATTEMPTS,
            registry=self.registry,
        )
        self._run = {outcome: runs.labels(outcome) for outcome in get_args(AttemptOutcome)}
        self._attempts = {status: attempts.labels(status) for status in FINAL}

    def created(self, tasks: int = 1) -> None:
        """So many tasks were queued."""
        self._created.inc(tasks)

    def claimed(self, waits: Iterable[float]) -> None:
        """Tasks were handed to a worker, which had waited for so many seconds each."""
        for seconds in waits:
            self._claims.inc()
            self._wait.observe(max(0.0, seconds))

    def ended(
        self, outcome: AttemptOutcome, run_seconds: float, *, task_status: TaskStatus | None, attempts: int
    ) -> None:
        """An attempt is over, after so many seconds; it was the task's last one when the task's status is a final one.

        Args:
            task_status: where the task went; None when it had gone on without this attempt.
            attempts: how many it has had by now.
        """
        self._run[outcome].observe(max(0.0, run_seconds))
        if outcome in ("expired", "deadline"):
            self._rescued.inc()
        if task_status in FINAL:
            self._attempts[task_status].observe(attempts)

    def cancelled(self, run_seconds: float | None, *, attempts: int) -> None:
        """A task was cancelled: after so many seconds of an attempt, or None when it was not under way."""
        if run_seconds is None:
            self._attempts["cancelled"].observe(attempts)
        else:
            self.ended("cancelled", run_seconds, task_status="cancelled", attempts=attempts)

    def stranded(self, tasks: int = 1) -> None:
        """So many tasks were found under way without a lease."""
        self._stranded.inc(tasks)
