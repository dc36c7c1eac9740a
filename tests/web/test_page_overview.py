"""The overview: how everything is, what may be restarted, and what is said when something cannot be known."""

import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

EVIL = "<img src=x onerror=alert(1)><script>alert(1)</script>"
STATUS = "**/api/runtime/status"


def card(page: Page, title: str) -> Any:
    return page.locator(".card", has=page.get_by_role("heading", name=title))


def service(page: Page, name: str) -> Any:
    tree = page.get_by_role("region", name="Task tree")
    return tree.get_by_role("row").filter(has=page.get_by_role("button", name=f"Restart {name}", exact=True))


def with_status(page: Page, **changes: Any) -> None:
    """Answer as the daemon does, but for this."""

    def answer(route: Route) -> None:
        told = route.fetch()
        route.fulfill(response=told, json=told.json() | changes)

    page.route(STATUS, answer)


def test_how_everything_is(api, open_page):
    capabilities = {"claude_cli": True, "max_concurrency": 3}
    api.post("/api/runtime/workers", json={"name": "gpu-1", "status": "online", "capabilities": capabilities})
    made = [api.post("/api/runtime/llm-tasks", json={"prompt": "x"}).json()["id"] for _ in range(3)]
    api.post(f"/api/runtime/llm-tasks/{made[0]}/lease", json={})
    page = open_page()
    expect(page.get_by_role("region", name="Verdict")).to_contain_text("ok")
    queue, workers = card(page, "Queue"), card(page, "Workers")
    expect(queue.get_by_role("listitem").filter(has_text="queued")).to_contain_text("2")
    expect(queue.get_by_role("listitem").filter(has_text="leased")).to_contain_text("1")
    expect(queue.locator("dt", has_text="Oldest").locator("+ dd time")).to_be_visible()
    expect(workers.get_by_role("link")).to_have_text("1 of 1 online")
    expect(workers.locator("dt", has_text="Free").locator("+ dd")).to_have_text("2")
    expect(card(page, "PostgreSQL")).to_contain_text("up")
    expect(card(page, "PostgreSQL").get_by_role("img")).to_have_attribute("aria-label", re.compile(r"\d+ checks in .*"))
    expect(card(page, "MinIO")).to_contain_text("not configured")
    expect(service(page, "probes/postgresql")).to_contain_text("running")
    expect(page.get_by_role("region", name="Latest in the audit trail")).to_contain_text("task.leased")
    queue.get_by_role("link", name="queued").click()
    expect(page).to_have_url(re.compile(r"#/tasks\?status=queued$"))


def test_a_pause_made_elsewhere_is_shown_at_once_and_as_text(api, open_page):
    page = open_page()
    queue = card(page, "Queue")
    expect(queue).to_contain_text("none")
    try:
        api.post("/api/runtime/queue", json={"paused": True, "reason": EVIL})
        expect(queue).to_contain_text(f"No task is handed out until somebody resumes the queue: {EVIL}")
        expect(page.get_by_role("region", name="Latest in the audit trail")).to_contain_text(EVIL)
        expect(page.locator("img, main script")).to_have_count(0)
    finally:
        api.post("/api/runtime/queue", json={"paused": False})
    expect(queue).not_to_contain_text("handed out")


def test_a_service_is_restarted_when_that_is_confirmed(api, open_page):
    page = open_page()
    restart = page.get_by_role("button", name="Restart probes", exact=True)
    restart.click()
    dialog = page.get_by_role("dialog", name="Restart probes")
    expect(dialog).to_contain_text("So are the 3 services below it.")
    page.keyboard.press("Enter")  # what has the focus is to leave it
    expect(dialog).to_have_count(0)
    expect(restart).to_be_focused()
    restart.click()
    dialog.get_by_role("button", name="Restart").click()
    expect(page.locator("#toasts")).to_have_text("probes runs again.")
    entries = api.get("/api/runtime/audit", params={"entity_id": "probes"}).json()
    assert [each["detail"] for each in entries if each["action"] == "control.restart"] == ["ok"]
    for name in ("http", "control"):
        expect(page.get_by_role("button", name=f"Restart {name}", exact=True)).to_have_count(0)


def test_a_restart_that_fails_is_no_success(api, open_page, trouble):
    trouble.expect("404")
    page = open_page()
    answer = {"type": "urn:problem-type:bloomd:not-found", "status": 404, "detail": f"no service is called {EVIL}"}
    page.route("**/services/restart", lambda route: route.fulfill(status=404, json=answer))
    page.get_by_role("button", name="Restart stats", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Restart").click()
    expect(page.locator("#toasts .bad")).to_contain_text(f"Not found. no service is called {EVIL}")


def test_what_is_not_known_is_no_zero(api, open_page, trouble):
    trouble.expect("503")
    away = {"type": "urn:problem-type:bloomd:unavailable", "status": 503, "detail": "PostgreSQL is away"}
    page = open_page("keys")
    with_status(page, queue=None, workers=None, verdict="down", reasons=[EVIL, "another"], next="bloomd-ctl probe x")
    page.route("**/api/runtime/audit?*", lambda route: route.fulfill(status=503, json=away))
    page.route("**/api/runtime/queue/history", lambda route: route.fulfill(status=503, json=away))
    page.get_by_role("link", name="Overview").click()
    expect(page.get_by_role("region", name="Verdict")).to_contain_text(f"down {EVIL}; another")
    expect(page.get_by_role("region", name="Verdict")).to_contain_text("Try next: bloomd-ctl probe x")
    for title in ("Queue", "Workers"):
        expect(card(page, title)).to_contain_text("PostgreSQL does not answer")
        expect(card(page, title).locator("dd")).to_have_count(0)
    expect(page.get_by_role("alert")).to_have_count(2)
    expect(page.get_by_role("alert").first).to_contain_text("PostgreSQL is away")


def test_a_service_in_trouble_says_when_it_is_tried_again(api, open_page):
    page = open_page("keys")
    trouble = {
        "name": "stats", "state": "waiting", "since": 1, "cause": "again", "restarts": 7, "retry_in": 90.0,
        "last_error": EVIL, "essential": False, "by_hand": False,
    }  # fmt: skip
    with_status(page, services=[trouble])
    page.get_by_role("link", name="Overview").click()
    row = service(page, "stats")
    expect(row).to_contain_text("waiting")
    expect(row).to_contain_text(re.compile("next try in 1 min"))
    expect(row).to_contain_text(EVIL)
    expect(row).to_contain_text("7")


@pytest.mark.parametrize("old", [False, True])
def test_the_last_hour_as_charts_with_words(api, open_page, old):
    page = open_page("keys")
    at = page.evaluate("Date.now()")
    counts = {"queued": 4, "leased": 1, "running": 2, "free": 0, "created": 1, "failed": 0, "dead": 1, "cancelled": 0}
    samples = [
        counts | {"at": at - 120_000, "queued": 9, "created": None, "completed": None, "failed": None, "dead": None},
        counts | {"at": at - 60_000, "completed": 12},
        counts | {"at": at - 30_000, "completed": 3},
    ]
    if old:
        samples = [each | {"at": each["at"] - 600_000} for each in samples]
    page.route("**/api/runtime/queue/history", lambda route: route.fulfill(json=samples))
    page.get_by_role("link", name="Overview").click()
    now = ["–"] * 4 if old else ["4", "3", "6/min", "2/min"]
    depth = "Queue depth, the last hour. queued: {0} now, 9 at most. leased + running: {1} now, 3 at most"
    expect(page.get_by_role("img", name=depth.format(*now))).to_be_visible()
    rates = "Throughput, the last hour. completed: {2} now, 12/min at most. failed + dead: {3} now, 2/min at most"
    expect(page.get_by_role("img", name=rates.format(*now))).to_be_visible()


def test_a_busy_node_fits_on_a_screen(api, open_page):
    """It is also what the README shows."""
    for name in ("atlas", "borealis", "cirrus"):
        able = {"claude_cli": True, "max_concurrency": 4, "labels": ["gpu"]}
        api.post("/api/runtime/workers", json={"name": name, "capabilities": able, "os_info": "Alpine 3.20"})
    for number in range(14):
        task = {"prompt": f"Summarise chapter {number}", "agent_slug": "editor", "context_id": f"book-{number}"}
        id = api.post("/api/runtime/llm-tasks", json=task).json()["id"]
        if number < 11:
            api.post(f"/api/runtime/llm-tasks/{id}/lease", json={}).raise_for_status()
            api.post(f"/api/runtime/llm-tasks/{id}/heartbeat", json={}).raise_for_status()
        if number < 4:
            api.post(f"/api/runtime/llm-tasks/{id}/complete", json={"status": "success", "output": "Done."})
    page = open_page("keys")
    hour = page.evaluate("Date.now()") - 3_600_000

    def at(half_minute: int) -> dict[str, int]:
        wave = 1 + math.sin(half_minute / 9)
        done = round(4 + 3 * math.sin(half_minute / 7) + half_minute % 3)
        made = {"created": done, "completed": done, "failed": int(half_minute % 37 == 5), "dead": 0, "cancelled": 0}
        depth = {"queued": round(6 * wave + half_minute % 4), "leased": 1, "running": 5 + round(2 * wave), "free": 2}
        return {"at": hour + half_minute * 30_000, **depth, **made}

    page.route("**/api/runtime/queue/history", lambda route: route.fulfill(json=[at(each) for each in range(1, 121)]))
    page.get_by_role("link", name="Overview").click()
    expect(page.get_by_role("img", name="Throughput, the last hour. completed: ")).to_be_visible()
    expect(page.locator("#head .live")).to_have_text("live")
    if shots := os.environ.get("SCREENSHOTS"):
        page.set_viewport_size({"width": 1280, "height": 940})
        page.screenshot(path=Path(shots) / "overview.png")


def test_in_ukrainian_on_a_narrow_screen(api, open_page):
    page = open_page(language="uk", width=360)
    expect(page.get_by_role("heading", level=1)).to_have_text("Огляд")
    expect(page.get_by_role("heading", name="Дерево сервісів")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_what_runs_well_takes_one_line_of_a_narrow_screen(api, open_page):
    page = open_page(language="uk", width=360)
    running = page.locator(".services tr", has_text="працює").first
    expect(running).to_be_visible()
    assert running.bounding_box()["height"] < 80
    assert page.locator("#head").bounding_box()["height"] < 160
