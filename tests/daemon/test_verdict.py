"""The verdict, decided on plain values."""

import pytest

from bloomd.node import ReloadReport
from bloomd.probes import ProbeStatus
from bloomd.supervisor import ServiceStatus, State
from bloomd.verdict import judge, verdict

HEALTHY = ("control", "http", "probes", "probes/minio", "database", "sweeper", "membridge-sync")


def services(**states):
    """A healthy tree, but for these: a state, or a state with its last error."""
    found = []
    for name in HEALTHY:
        told = states.get(name.replace("-", "_").replace("/", "__"), State.RUNNING)
        state, error = told if isinstance(told, tuple) else (told, None)
        by_hand = error == "by hand"
        found.append(
            ServiceStatus(
                name=name, state=state, since=0.0, cause="" if by_hand else error or "", restarts=0, retry_in=None,
                last_error=None if by_hand else error, essential=False, by_hand=by_hand,
            )
        )  # fmt: skip
    return found


def judged(watched=(), /, **rest):
    states = {name: rest.pop(name) for name in list(rest) if name not in ("lag", "last_reload", "config_option")}
    found = judge(services(**states), watched, **rest)
    return verdict(found), [reason.text for reason in found], next((each.next for each in found if each.next), None)


def test_all_is_well():
    assert judged() == ("ok", [], None)
    assert judged([ProbeStatus("minio", state="disabled"), ProbeStatus("membridge", state="unknown")])[0] == "ok"


AWAY = (State.WAITING, "PostgreSQL is away")
UNMIGRATED = (State.FAILED, "no schema yet; run `bloomd migrate`")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"http": (State.FAILED, "boom")}, ("down", ["http has failed: boom"], "bloomd-ctl restart http")),
        ({"http": (State.STOPPED, "by hand")}, ("down", ["http is stopped by hand"], "bloomd-ctl start http")),
        ({"database": AWAY}, ("down", ["PostgreSQL is not up: PostgreSQL is away"], None)),
        (
            {"database": AWAY, "sweeper": AWAY},
            ("down", ["PostgreSQL is not up: PostgreSQL is away", "1 service waits for it"], None),
        ),
        (
            {"database": UNMIGRATED, "config_option": " -c x.yaml"},
            (
                "down",
                ["database has failed: no schema yet; run `bloomd migrate`"],
                "bloomd migrate -c x.yaml, then bloomd-ctl restart database",
            ),
        ),
        ({"sweeper": (State.BACKOFF, "bug")}, ("degraded", ["sweeper is backoff: bug"], None)),
        ({"sweeper": (State.STARTING, "bug")}, ("degraded", ["sweeper is waiting: bug"], None)),
        (
            {"probes": (State.STOPPED, "by hand"), "probes__minio": (State.STOPPED, "shutdown")},
            ("degraded", ["probes is stopped by hand"], "bloomd-ctl start probes"),
        ),
        ({"lag": 1.5}, ("degraded", ["the event loop was 1.5 s late within the last minute"], None)),
        (
            {"last_reload": ReloadReport(ok=False, result="failed", errors=["x.yaml:1:1: no"])},
            ("degraded", ["the last reload failed: x.yaml:1:1: no"], "bloomd check, then bloomd-ctl reload"),
        ),
        ({"last_reload": ReloadReport(ok=True, result="reloaded")}, ("ok", [], None)),
    ],
)
def test_what_is_wrong_and_what_to_do(told, expected):
    assert judged(**told) == expected


def test_one_outage_seen_by_service_and_probe_is_one_reason():
    down = ProbeStatus("membridge", state="down", failures=3, error="refused")
    assert judged([down]) == ("degraded", ["membridge is down: refused"], "bloomd-ctl probe membridge")
    assert judged([down], membridge_sync=(State.WAITING, "refused"))[1] == ["membridge-sync is waiting: refused"]


def test_the_worst_comes_first():
    _, reasons, _ = judged(sweeper=(State.FAILED, "bug"), http=(State.FAILED, "boom"))
    assert reasons == ["http has failed: boom", "sweeper has failed: bug"]
