"""The page Tasks: found, created, looked into, cancelled, queued again, one or many; the queue paused and resumed."""

import re
import time

import pytest
from playwright.sync_api import Page, Route, expect

EVIL = "<img src=x onerror=alert(1)>"
TASKS = "/api/runtime/llm-tasks"


@pytest.fixture
def create(api):
    """Queue a task; its id."""

    def create(**fields) -> str:
        answer = api.post(TASKS, json={"prompt": f"Say hello {EVIL}", **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    api.post("/api/runtime/queue", json={"paused": False})
    return create


@pytest.fixture
def lease(api):
    """Have `w1` run a task."""
    api.post("/api/runtime/workers", json={"name": "w1", "capabilities": {"max_concurrency": 9}})

    def lease(task: str) -> None:
        assert api.post(f"{TASKS}/{task}/lease", json={"worker_id": "w1"}).status_code == 201
        assert api.post(f"{TASKS}/{task}/heartbeat", json={"progress": 40}).status_code == 200

    return lease


def button(page: Page, name: str | re.Pattern[str]):
    return page.locator("main").get_by_role("button", name=name)


def agree(page: Page, name: str) -> str:
    """Press the button of the dialog, and give what the dialog said."""
    said = page.get_by_role("dialog").inner_text()
    page.get_by_role("dialog").get_by_role("button", name=name, exact=True).click()
    return said


def statuses(api) -> list[str]:
    return [task["status"] for task in api.get(TASKS).json()]


def test_tasks_are_found_by_what_they_are(api, create, lease, open_page):
    running, _, geo = create(), create(agent_slug="law"), create(agent_slug="geo", context_id="c1")
    lease(running)
    page = open_page("tasks")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(3)
    expect(page.locator("main img")).to_have_count(0)
    expect(rows.last).to_contain_text("40 %")
    page.locator("main").get_by_role("link", name="queued 2").click()
    expect(rows).to_have_count(2)
    page.get_by_label("Agent").fill("geo")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text(geo)
    expect(page).to_have_url(re.compile(r"#/tasks\?status=queued&agent_slug=geo$"))
    page.go_back()
    expect(rows).to_have_count(2)
    page.get_by_label("Find by id").fill(running)
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text(running)


def test_a_list_in_pages(api, create, open_page):
    api.post(TASKS, json=[{"prompt": f"Task {number}"} for number in range(120)])
    page = open_page("tasks")
    expect(page.locator("tbody tr")).to_have_count(100)
    page.get_by_role("link", name="Next page").click()
    expect(page.locator("tbody tr")).to_have_count(20)
    page.get_by_role("link", name="First page").click()
    expect(page.locator("tbody tr")).to_have_count(100)


def test_a_task_is_created(api, create, open_page):
    page = open_page("tasks")
    button(page, "New task").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Prompt").fill(EVIL)
    dialog.get_by_label("Agent").fill("geo")
    dialog.get_by_label("Labels").fill("gpu, eu")
    dialog.get_by_label("Priority").fill("7")
    dialog.get_by_label("Result as").select_option("json")
    agree(page, "New task")
    expect(page.locator("main pre")).to_have_text(EVIL)
    [task] = api.get(TASKS).json()
    assert (task["prompt"], task["agent_slug"], task["labels"]) == (EVIL, "geo", ["gpu", "eu"])
    assert (task["priority"], task["desired_format"], task["policy"]["timeout_sec"]) == (7, "json", 120)
    expect(page.locator("main")).to_contain_text("No worker is known")


def test_one_task_from_its_progress_to_its_result(api, create, lease, open_page):
    task = create()
    page = open_page(f"tasks?task={task}")
    lease(task)
    expect(page.locator("main header .badge")).to_have_text("running")
    api.post(f"{TASKS}/{task}/heartbeat", json={"progress": f"reading {EVIL}"})
    expect(page.locator("main header")).to_contain_text(f"reading {EVIL}")
    metrics = {"duration_ms": 2300, "tokens_used": 1234, "cost_usd": 0.0123}
    done = {"status": "success", "output": '{"said": "<b>hello</b>"}', "metrics": metrics}
    api.post(f"{TASKS}/{task}/complete", json=done)
    expect(page.locator("main header .badge")).to_have_text("completed")
    main = page.locator("main")
    for text in ("1,234", "$0.0123", '"said": "<b>hello</b>"\n', "1 / 3"):
        expect(main).to_contain_text(text)
    button(page, "As it came").click()
    expect(main.locator("pre").first).to_have_text(done["output"])
    expect(page.locator("main img, main b")).to_have_count(0)
    expect(page.get_by_role("img", name=re.compile("1: w1, .*success"))).to_be_visible()
    with page.expect_download() as download:
        main.get_by_role("link", name="Download").click()
    assert download.value.path().read_text() == done["output"]


def test_a_failed_attempt_says_why_and_the_task_is_queued_again(api, create, lease, open_page):
    task = create(max_attempts=1)
    lease(task)
    api.post(f"{TASKS}/{task}/complete", json={"status": "error", "error_message": f"no such file {EVIL}"})
    page = open_page(f"tasks?task={task}")
    expect(page.locator("main .problem")).to_contain_text(f"no such file {EVIL}")
    button(page, "Queue again").click()
    assert "all its attempts" in agree(page, "Queue again")
    expect(page.locator("main header .badge")).to_have_text("queued")
    button(page, "Cancel task").click()
    agree(page, "Cancel task")
    expect(page.locator("main header .badge")).to_have_text("cancelled")


def test_what_is_selected_is_cancelled(api, create, open_page):
    ids = [create() for _ in range(3)]
    page = open_page("tasks")
    page.get_by_label(f"Select the task {ids[0]}").check()
    page.get_by_label(f"Select the task {ids[2]}").check()
    create()
    expect(page.locator("tbody tr")).to_have_count(4)
    button(page, "Cancel task: 2 selected:").click()
    assert "Cancel 2 tasks?" in agree(page, "Cancel 2 tasks")
    expect(page.locator("#toasts")).to_contain_text("2 tasks cancelled.")
    assert sorted(statuses(api)) == ["cancelled", "cancelled", "queued", "queued"]


def test_all_that_match_are_counted_first(api, create, open_page):
    api.post(TASKS, json=[{"prompt": "x", "agent_slug": "geo"}] * 130 + [{"prompt": "x"}])
    page = open_page("tasks?agent_slug=geo")
    button(page, "Cancel task: All that match:").click()
    expect(page.get_by_role("dialog")).to_contain_text("Cancel 130 tasks?")
    page.keyboard.press("Escape")
    assert set(statuses(api)) == {"queued"}
    button(page, "Cancel task: All that match:").click()
    expect(page.get_by_role("dialog")).to_contain_text("Cancel 130 tasks?")
    api.post(TASKS, json={"prompt": "one that was not counted", "agent_slug": "geo"})
    agree(page, "Cancel 130 tasks")
    expect(page.locator("#toasts")).to_contain_text("130 tasks cancelled.")
    expect(page.locator("tbody .badge").get_by_text("cancelled")).to_have_count(99)
    expect(page.locator("main .count")).to_have_count(0)  # those of all tasks would say nothing of these
    page.goto(page.url.replace("agent_slug=geo", "agent_slug=nobody"))
    button(page, "Queue again: All that match:").click()
    expect(page.locator("#toasts")).to_contain_text("none of the tasks")
    page.goto(page.url + "&status=completed")
    expect(button(page, re.compile("All that match"))).to_have_count(0)


def test_a_filter_that_is_still_being_typed_counts(api, create, open_page):
    create(agent_slug="geo")
    create(agent_slug="other")
    page = open_page("tasks")
    page.get_by_label("Agent", exact=True).fill("geo")
    button(page, "Cancel task: All that match:").click()
    expect(page.get_by_role("dialog")).to_contain_text("Agent: geo")
    assert "Cancel 1 task?" in agree(page, "Cancel 1 task")
    expect(page.locator("#toasts")).to_contain_text("1 task cancelled.")
    assert sorted(statuses(api)) == ["cancelled", "queued"]


def test_many_that_are_cancelled_elsewhere_are_seen_to_be(api, create, open_page):
    ids = [create() for _ in range(3)]
    page, one = open_page("tasks"), open_page(f"tasks?task={ids[1]}")
    expect(page.locator("tbody tr")).to_have_count(3)
    api.post(f"{TASKS}/cancel", json={"filter": {"status": "queued"}}).raise_for_status()
    expect(page.locator("tbody .badge").get_by_text("cancelled")).to_have_count(3)
    expect(one.locator("main header .badge")).to_have_text("cancelled")


def test_the_counts_are_right_at_last_however_old_the_snapshots_were(api, create, open_page):
    """Both what an event and what an action makes the page load may see a snapshot of a second ago."""
    for _ in range(3):
        create()
    page = open_page("tasks?status=queued")
    old_until = time.monotonic() + 3600
    old = api.get("/api/runtime/stats").json()

    def stats(route: Route) -> None:
        if time.monotonic() < old_until:
            route.fulfill(json=old)
        else:
            route.continue_()

    def cancel(route: Route) -> None:
        nonlocal old_until
        is_dry = route.request.post_data_json["dry_run"]
        if not is_dry:
            old_until = time.monotonic() + 1
        answer = route.fetch()
        if not is_dry:
            with page.expect_request("**/api/runtime/stats"):  # for the event, which is faster here than the answer
                pass
        route.fulfill(response=answer)

    page.route("**/api/runtime/stats", stats)
    page.route("**/api/runtime/llm-tasks/cancel", cancel)
    button(page, "Cancel task: All that match:").click()
    agree(page, "Cancel 3 tasks")
    expect(page.locator("main .switch")).to_contain_text("cancelled 3")


def test_the_queue_is_paused_and_resumed(api, create, open_page):
    page = open_page("tasks")
    button(page, "Pause the queue").click()
    page.get_by_role("dialog").get_by_label("Reason").fill(f"quota {EVIL}")
    agree(page, "Pause the queue")
    expect(page.locator("main .paused")).to_contain_text(f"until somebody resumes it: quota {EVIL}")
    assert api.get("/api/runtime/queue").json()["paused"]
    button(page, "Resume the queue").click()
    expect(page.locator("main .paused")).to_have_count(0)
    assert not api.get("/api/runtime/queue").json()["paused"]


def test_a_long_reason_of_a_pause_fits_a_narrow_page(api, open_page):
    api.post("/api/runtime/queue", json={"paused": True, "reason": "x" * 900})
    page = open_page("tasks", width=360)
    expect(page.locator("main .paused")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    api.post("/api/runtime/queue", json={"paused": False})


def test_what_cannot_be_had_is_said(create, open_page, trouble):
    trouble.expect("404", "500", "ERR_FAILED")
    page = open_page("tasks?task=nothing")
    expect(page.locator("main .problem")).to_contain_text("Task not found")
    page = open_page("tasks")
    page.route("**/api/runtime/stats", lambda route: route.fulfill(status=500, json={"detail": "a bug"}))
    create()
    expect(page.locator("main .problem")).to_contain_text("a bug")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("main .switch")).not_to_contain_text("0")
