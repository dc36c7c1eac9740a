"""What is counted of tasks and leases, read back as Prometheus would read it."""

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from bloomd.runtime.meters import Meters


def samples(meters):
    text = generate_latest(meters.registry).decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def moved(meters, act):
    """What differs after the act, buckets left out."""
    before = samples(meters)
    act()
    after = samples(meters)
    return {
        name: value - before[name]
        for name, value in after.items()
        if value != before[name] and not name[0].endswith("_bucket")
    }


def test_every_series_is_there_from_the_start():
    assert set(samples(Meters()).values()) == {0.0}


def test_created():
    meters = Meters()
    assert moved(meters, lambda: meters.created(3)) == {("bloomd_tasks_created_total",): 3}


def test_claimed_counts_tasks_and_their_waits():
    meters = Meters()
    assert moved(meters, lambda: meters.claimed([0.004, 40.0])) == {
        ("bloomd_claims_total",): 2,
        ("bloomd_task_wait_seconds_count",): 2,
        ("bloomd_task_wait_seconds_sum",): 40.004,
    }
    buckets = samples(meters)
    assert [buckets["bloomd_task_wait_seconds_bucket", le] for le in ("0.005", "30.0", "60.0", "+Inf")] == [1, 1, 2, 2]


def test_a_clock_that_was_set_back_never_lowers_a_sum():
    meters = Meters()
    assert moved(meters, lambda: meters.claimed([-5.0])) == {
        ("bloomd_claims_total",): 1,
        ("bloomd_task_wait_seconds_count",): 1,
    }


@pytest.mark.parametrize("status", ["completed", "failed", "dead", "cancelled"])
def test_the_last_attempt_tells_how_many_there_were(status):
    meters = Meters()
    assert moved(meters, lambda: meters.ended("error", 2.0, task_status=status, attempts=3)) == {
        ("bloomd_task_run_seconds_count", "error"): 1,
        ("bloomd_task_run_seconds_sum", "error"): 2,
        ("bloomd_task_attempts_count", status): 1,
        ("bloomd_task_attempts_sum", status): 3,
    }


@pytest.mark.parametrize("status", ["queued", None])
def test_an_attempt_that_is_not_the_last_is_an_attempt_only(status):
    meters = Meters()
    assert moved(meters, lambda: meters.ended("released", 2.0, task_status=status, attempts=1)) == {
        ("bloomd_task_run_seconds_count", "released"): 1,
        ("bloomd_task_run_seconds_sum", "released"): 2,
    }


@pytest.mark.parametrize(("outcome", "rescued"), [("expired", 1), ("deadline", 1), ("error", 0), ("released", 0)])
def test_rescued_are_those_that_a_worker_did_not_end(outcome, rescued):
    meters = Meters()
    meters.ended(outcome, 300.0, task_status="queued", attempts=1)
    assert samples(meters)["bloomd_leases_rescued_total",] == rescued


def test_two_databases_count_apart():
    mine, theirs = Meters(), Meters()
    assert moved(theirs, lambda: mine.stranded(2)) == {}
    assert samples(mine)["bloomd_tasks_stranded_total",] == 2
