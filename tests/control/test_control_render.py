import time
from collections.abc import Iterator

import pytest
from control_answers import BAD, GOOD, NOW, probe, service

from bloomd.control import render, render_work
from bloomd.control.layout import Look, clock, cropped, duration, printable


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC0")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def lines(show, answer, **look) -> list[str]:
    return list(show(printable(answer), Look(NOW, **look)))


def test_a_good_status() -> None:
    assert lines(render.status, GOOD, width=80) == [
        "ok",
        "notice    authentication is off",
        "",
        "services",
        "  control     running  3 h",
        "  http        running  3 h",
        "  probes      running  3 h",
        "    postgres  running  3 h",
        "  database    running  3 h  1 restart, last error: the server closed the",
        "                            connection",
        "  sync        running  3 h",
        "",
        "probes",
        "  postgres  up        ok 3 s ago  p50 1.2 ms  p99 15 ms",
        "  minio     disabled",
        "",
        "queue     12 queued, 3 running, 100 completed, oldest queued for 1 min, 3 active",
        "          leases, 0 rescued in the last hour",
        "workers   3 of 4 online, 3 of 12 places taken",
        "leader    this node, epoch 7, for 3 h",
        "sync      succeeded 4 s ago, 4 agents",
        "process   pid 4711, up 3 h, version 0.1.0, schema 3, node alpha",
        "          88 MiB, 31 of 1024 open files, loop lag 0.3 ms (worst 12 ms)",
    ]


def test_a_bad_status_says_what_is_unknown_and_what_to_try() -> None:
    assert lines(render.status, BAD, width=100) == [
        "down: PostgreSQL is away; sync is waiting",
        "",
        "services",
        "  http           running  3 h",
        "  database       waiting  2 min  retry in 4 s, 2 restarts, connection to 127.0.0.1:5432 failed:",
        "                                 Connection refused. Is the server running on that host and",
        "                                 accepting TCP/IP connections?",
        "  notifications  waiting  2 min  waits for database",
        "  sync           stopped  10 s   stopped by hand",
        "",
        "probes",
        "  postgres  down     ok 2 min ago  p50 1.2 ms  p99 15 ms  13 failures in a row: �[2Jconnection",
        "                                                          refused",
        "  minio     unknown  never ok",
        "",
        "queue     unknown (the database is not ready)",
        "workers   unknown (the database is not ready)",
        "leader    unknown",
        "sync      never succeeded, 1 failure in a row: HTTP 500",
        "process   pid 4711, up 3 h, version 0.1.0, schema unknown, node alpha",
        "          88 MiB, 31 of 1024 open files, loop lag 0.3 ms (worst 12 ms)",
        "reload    failed 1 min ago: bloomd.yaml:3:1: unknown key `htpp`",
        "",
        "try next  bloomd-ctl restart database",
    ]


def test_a_node_that_follows_names_who_leads() -> None:
    leader = {"node": "beta", "epoch": 8, "since": NOW - 75, "here": False}
    text = lines(render.status, GOOD | {"leader": leader})
    assert "leader    beta, epoch 8, for 1 min" in text
    assert "sync      done by beta" in text


@pytest.mark.parametrize("answer", [GOOD, BAD])
@pytest.mark.parametrize("width", [60, 80, 90, 100])
def test_it_fits(answer: dict, width: int) -> None:
    assert max(map(len, lines(render.status, answer, width=width))) <= width


def test_colour_marks_words_and_moves_no_column() -> None:
    plain, coloured = lines(render.status, BAD), lines(render.status, BAD, colour=True)
    assert coloured[0].startswith("\x1b[31mdown\x1b[0m")
    assert any("\x1b[32mrunning\x1b[0m" in line for line in coloured)
    without = [line.replace("\x1b[0m", "") for line in coloured]
    for code in ("\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[2m"):
        without = [line.replace(code, "") for line in without]
    assert without == plain


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"), (0.4, "0 s"), (3, "3 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"),
        (47.9 * 3600, "47 h"), (48 * 3600, "2 d"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_empty_queue_and_no_control_plane() -> None:
    queue = {"by_status": {}, "oldest_queued_seconds": None, "active_leases": 1, "rescued_last_hour": 2, "pause": None}
    text = "\n".join(lines(render.status, GOOD | {"queue": queue, "sync": GOOD["sync"] | {"configured": False}}))
    assert "queue     empty, 1 active lease, 2 rescued in the last hour" in text
    assert "sync      not configured" in text


@pytest.mark.parametrize(
    ("workers", "text"),
    [
        ({"total": 1, "online": 1, "capacity": 1, "busy": 0}, "1 of 1 online, 0 of 1 place taken"),
        ({"total": 1, "online": 0, "capacity": 0, "busy": 0}, "0 of 1 online"),
        ({"total": 1, "online": 0, "capacity": 0, "busy": 1}, "0 of 1 online, 1 place taken"),
        ({"total": 2, "online": 1, "capacity": 2, "busy": 3}, "1 of 2 online, 3 places taken"),
    ],
)
def test_workers_that_went_offline_still_hold_their_places(workers: dict, text: str) -> None:
    assert f"workers   {text}" in lines(render.status, GOOD | {"workers": workers})


@pytest.mark.parametrize(
    ("pause", "text"),
    [
        (None, "12 queued, "),
        ({"until": None, "reason": None}, "paused until somebody resumes it, 12 queued, "),
        ({"until": NOW + 3600, "reason": None}, "paused until 23:13, 12 queued, "),
        (
            {"until": NOW + 7200, "reason": "quota used up"},
            "paused until 2023-11-15 00:13 (quota used up), 12 queued, ",
        ),
    ],
)
def test_a_status_says_first_that_the_queue_is_paused(pause: dict | None, text: str) -> None:
    status = GOOD | {"queue": GOOD["queue"] | {"pause": pause}}
    assert f"queue     {text}" in "\n".join(lines(render.status, status))
    painted = "queue     \x1b[33mpaused\x1b[0m until" in "\n".join(lines(render.status, status, colour=True))
    assert painted is (pause is not None)


def test_a_status_counts_the_workers_that_get_nothing_new() -> None:
    workers = GOOD["workers"] | {"cordoned": 1, "draining": 2}
    text = "workers   3 of 4 online, 1 cordoned, 2 draining, 3 of 12 places taken"
    assert text in lines(render.status, GOOD | {"workers": workers})


def test_the_status_of_a_daemon_from_before_these_fields_is_shown() -> None:
    workers = {"total": 4, "online": 3, "capacity": 12, "busy": 3}
    queue = {key: value for key, value in GOOD["queue"].items() if key != "pause"}
    assert lines(render.status, GOOD | {"workers": workers, "queue": queue}) == lines(render.status, GOOD)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"paused": False, "until": None, "reason": None}, "the queue is not paused"),
        ({"paused": True, "until": None, "reason": None}, "the queue is paused until somebody resumes it"),
        (
            {"paused": True, "until": int((NOW + 60) * 1000), "reason": "quota"},
            "the queue is paused until 22:14: quota",
        ),
    ],
)
def test_the_queue(state: dict, text: str) -> None:
    assert lines(render.queue, state) == [text]


@pytest.mark.parametrize(
    ("worker", "text"),
    [
        ({}, "gpu-1 gets leases again"),
        ({"status": "offline"}, "gpu-1 gets leases again as soon as it is online (it is offline)"),
        ({"cordoned": True}, "gpu-1 is cordoned: it holds no lease"),
        ({"cordoned": True, "active_leases": 1}, "gpu-1 is cordoned: 1 lease left"),
        ({"draining": True, "active_leases": 2}, "gpu-1 is draining: 2 leases left"),
        ({"draining": True}, "gpu-1 is drained: it holds no lease"),
    ],
)
def test_a_worker_that_is_held_back(worker: dict, text: str) -> None:
    usual = {"id": "gpu-1", "status": "online", "cordoned": False, "draining": False, "active_leases": 0}
    assert lines(render.worker, usual | worker) == [text]


@pytest.mark.parametrize(
    ("said", "status", "why"),
    [
        ({"paused_because": "usage limit\nreached", "paused_until": (NOW + 60) * 1000}, "paused",
         "paused until {until}: usage limit reached"),
        ({"paused_because": "not logged in", "paused_until": None}, "paused", "paused: not logged in"),
        ({"paused_because": "x" * 600, "paused_until": 1e300}, "paused", "paused: xxx"),
        ({"paused_because": None, "paused_until": None}, "error", "asks for work itself"),
        ({"paused_because": ["x"], "paused_until": "soon"}, "error", "asks for work itself"),
    ],
)  # fmt: skip
def test_a_worker_that_has_paused_says_why(said: dict, status: str, why: str) -> None:
    worker = {
        "id": "w1", "status": "error", "cordoned": False, "draining": False, "active_leases": 0, "url": "",
        "capabilities": {"labels": [], "max_concurrency": 1, **said}, "last_heartbeat": None, "agent_version": None,
        "os_info": None, "install_method": None, "ip_addrs": [], "source": "direct",
    }  # fmt: skip
    listed = lines(render_work.workers, {"workers": [worker], "cursor": None}, width=200)
    assert listed[1].split()[:2] == ["w1", status]
    assert why.format(until=clock(NOW + 60, NOW)) in listed[1]
    assert len(" ".join(listed)) < 600
    assert lines(render_work.worker_shown, {"worker": worker, "leases": []}, width=200)[: len(listed)] == listed
    online = worker | {"status": "online"}
    assert "paused" not in str(lines(render_work.workers, {"workers": [online], "cursor": None}))


def test_why_gives_each_reason_with_its_code() -> None:
    reasons = [
        {"code": "queue-paused", "sentence": "The queue is paused until 2026-12-01 18:00:00 UTC: quota used up."},
        {"code": "no-label", "sentence": "None of the 3 online workers has the label gpu."},
    ]
    assert lines(render.why, {"status": "queued", "reasons": reasons}, width=60) == [
        "queue-paused  The queue is paused until 2026-12-01 18:00:00",
        "              UTC: quota used up.",
        "no-label      None of the 3 online workers has the label",
        "              gpu.",
    ]


def event(type: str, entity_id: str, data: dict, id: str | None = "7-1") -> dict:
    return {"id": id, "type": type, "entity_id": entity_id, "data": data}


def entry(action: str, **more: object) -> dict:
    usual = {"id": "e", "timestamp": int(NOW * 1000), "action": action, "entity_type": "task", "entity_id": "T"}
    return usual | {"actor": "ci", "detail": None} | more


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (event("task", "T", entry("task.created")), "22:13:20  task.created       T  ci"),
        (
            event("task", "T", entry("task.retried", detail="attempt 1 of 3:\nno such file")),
            "22:13:20  task.retried       T  ci  attempt 1 of 3: no such file",
        ),
        (
            event("audit", "queue", entry("queue.paused", timestamp=int((NOW - 86400) * 1000))),
            "2023-11-13 22:13:20  queue.paused       queue  ci",
        ),
        (
            event("task", "T", {"action": "task.progress", "timestamp": int(NOW * 1000), "progress": 0.5}, None),
            "22:13:20  task.progress      T  0.5",
        ),
        (
            event("probe", "minio", {"name": "minio", "state": "down", "error": "refused", "node": "a"}, None),
            "22:13:20  probe              minio  down  refused",
        ),
        (event("reset", "", {"reason": "look anew"}), "22:13:20  reset              look anew"),
    ],
)
def test_an_event_is_one_line(answer: dict, text: str) -> None:
    assert lines(render.event, answer, width=40) == [text]


@pytest.mark.parametrize(
    ("answer", "coloured"),
    [
        (event("task", "T", entry("task.completed")), "\x1b[32mtask.completed   \x1b[0m"),
        (event("task", "T", entry("task.dead")), "\x1b[31mtask.dead        \x1b[0m"),
        (event("probe", "minio", {"state": "down"}, None), "\x1b[31mprobe            \x1b[0m"),
        (event("probe", "minio", {"state": "up"}, None), "\x1b[32mprobe            \x1b[0m"),
    ],
)
def test_the_colour_of_an_event_is_what_became_of_it(answer: dict, coloured: str) -> None:
    [line] = lines(render.event, answer, colour=True)
    assert coloured in line


def test_keys() -> None:
    keys = [
        {
            "name": "ci", "created_at": int((NOW - 86400) * 1000), "created_by": "root",
            "last_used_at": int((NOW - 61) * 1000),
        },
        {"name": "laptop", "created_at": int((NOW - 60) * 1000), "created_by": "ci", "last_used_at": None},
    ]  # fmt: skip
    assert lines(render.keys, {"keys": keys}) == [
        "name    made              by    last used",
        "ci      2023-11-13 22:13  root  1 min ago",
        "laptop  22:12             ci    never",
    ]
    assert lines(render.keys, {"keys": []}) == ["no key has a name"]


def test_the_last_key_is_not_removed_in_silence() -> None:
    assert lines(render.removed_key, {"removed": True, "name": "ci", "authentication": "on"}) == [
        "ci is a key no longer"
    ]
    assert lines(render.removed_key, {"removed": True, "name": "ci", "authentication": "off"}) == [
        "ci is a key no longer",
        "notice    it was the last one: whoever reaches the API may now do everything",
    ]


def test_under_a_group_stopped_by_hand_nothing_is_watched() -> None:
    services = [
        service("probes", state="stopped", cause="stopped by hand", by_hand=True),
        service("probes/postgres", state="stopped", cause="shutdown", last_error="connection refused"),
        service("probes/minio", state="stopped", cause="shutdown"),
    ]
    text = lines(render.status, GOOD | {"services": services})
    assert "    postgres  stopped  3 h" in text
    assert "  postgres  not watched" in text
    assert "  minio     disabled" in text


def test_what_does_not_fit_beside_a_row_goes_below_it() -> None:
    away = service("membridge-sync", state="waiting", retry_in=2.0, last_error="connection refused by membridge")
    assert lines(render.services, {"services": [away]}, width=50) == [
        "membridge-sync  waiting  3 h",
        "    retry in 2 s, connection refused by membridge",
    ]


def test_a_picture_has_its_time_and_is_cropped_at_the_bottom() -> None:
    stamped = lines(render.status, BAD, stamp="12:34:56  ")
    assert stamped[0] == "12:34:56  down: PostgreSQL is away; sync is waiting"
    assert cropped(stamped, height=len(stamped), width=100) == stamped
    assert cropped(stamped, height=4, width=100) == [
        *stamped[:3],
        f"… {len(stamped) - 3} more lines: make the window larger, or use status without -w",
    ]
    assert cropped(stamped, height=len(stamped) - 1, width=14)[-1] == "… 2 more lines"


def test_a_failure_is_wrapped() -> None:
    failure = {"error": "there is no socket /run/bloomd/bloomd.sock: is bloomd running?"}
    assert lines(render.failure, failure, width=60, stamp="12:34:56  ") == [
        "12:34:56  there is no socket /run/bloomd/bloomd.sock: is",
        "  bloomd running?",
    ]


def test_services_and_probes_alone_have_their_whole_names() -> None:
    assert lines(render.services, {"services": [service("probes/minio")]}) == ["probes/minio  running  3 h"]
    assert lines(render.probes, {"probes": [probe("minio")]}) == ["minio  up  ok 3 s ago  p50 1.2 ms  p99 15 ms"]


def test_config() -> None:
    settings = [
        {"key": "http.bind", "value": ["127.0.0.1:5000", ":80"], "source": "file", "where": "bloomd.yaml:3:7"},
        {"key": "minio.secure", "value": False, "source": "default", "where": None},
        {"key": "membridge.server_url", "value": None, "source": "default", "where": None},
    ]
    answer = {"settings": settings, "warnings": ["http.api_key is short"]}
    assert lines(render.config, answer) == [
        "http.bind             127.0.0.1:5000, :80  # file (bloomd.yaml:3:7)",
        "minio.secure          false  # default",
        "membridge.server_url  -  # default",
        "warning   http.api_key is short",
    ]
    assert lines(render.config, answer, width=60)[:2] == [
        "http.bind             127.0.0.1:5000, :80  # file",
        "                      (bloomd.yaml:3:7)",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (True, "true"), (False, "false"), (10.0, "10.0"), (0.25, "0.25"), (8388608, "8388608"),
        ("info", "info"), ((), "-"), (["a", "b"], "a, b"), (("a", None), "a, -"),
    ],
)  # fmt: skip
def test_values_of_settings(value: object, text: str) -> None:
    assert render.shown(value) == text


def test_reload() -> None:
    nothing = {"ok": True, "changes": [], "restarted": [], "needs_restart": [], "retried": [], "errors": []}
    assert lines(render.reload, nothing | {"result": "unchanged", "retried": ["sync"]}) == [
        "unchanged",
        "tried again: sync",
    ]
    done = {
        "result": "reloaded",
        "changes": [
            {"key": "log.level", "old": "info", "new": "debug"},
            {"key": "control.group", "old": None, "new": "x"},
        ],
        "restarted": ["sync", "probes"],
        "needs_restart": ["control.group"],
    }  # fmt: skip
    assert lines(render.reload, nothing | done) == [
        "ok: the new settings are in force",
        "  log.level  info -> debug",
        "in force after a restart of bloomd:",
        "  control.group  - -> x",
        "restarted: sync, probes",
    ]
    assert lines(render.reload, nothing | done | {"changes": done["changes"][1:], "restarted": []}) == [
        "ok: nothing changes before a restart of bloomd",
        "in force after a restart of bloomd:",
        "  control.group  - -> x",
    ]
    failed = {"ok": False, "result": "failed", "errors": ["bloomd.yaml:3:1: unknown key `htpp`"]}
    assert lines(render.reload, nothing | failed) == [
        "failed: the old settings stay in force",
        "bloomd.yaml:3:1: unknown key `htpp`",
    ]


def test_one_line_answers() -> None:
    assert lines(render.sync, {"agents": 1, "added": 1, "changed": 0, "offline": 2, "seconds": 0.25}) == [
        "1 agent: 1 added, 0 changed, 2 offline, in 250 ms"
    ]
    assert lines(render.version, {"version": "0.1.0", "python": "3.11.7", "schema": None}) == [
        "bloomd 0.1.0, Python 3.11.7, schema unknown (the database is not ready)"
    ]
    assert lines(render.ping, {"pong": True, "pid": 7, "loop_lag_ms": 0.04, "round_trip_ms": 1.5}) == [
        "pong from pid 7 in 1.5 ms, loop lag 0.0 ms"
    ]
    assert lines(render.log_level, {"level": "debug"}) == ["log level: debug"]


def test_ages_are_told_by_the_clock() -> None:
    assert Look(time.time()).ago(time.time() - 61) == "1 min ago"
