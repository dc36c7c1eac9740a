"""The page Workers: the fleet at a glance, one worker, what is done to it, and how a machine joins."""

import re

import psycopg
import pytest
from playwright.sync_api import Page, expect

EVIL = "<img src=x onerror=alert(1)>"

# More than one draws at once, and none that the daemon finds silent meanwhile.
MANY = """
INSERT INTO workers (id, node_id, url, status, registered_at, last_heartbeat)
SELECT 'node-' || each, 'node-' || each, '', 'online', bloom_now_ms(), bloom_now_ms()
  FROM generate_series(1, 120) AS each
"""


@pytest.fixture
def fleet(api):
    """Two workers: `w1` may hold two leases, `w2` is offline."""
    for body in (
        {"name": "w1", "capabilities": {"max_concurrency": 2, "labels": ["gpu", EVIL]}, "os_info": EVIL},
        {"name": "w2", "status": "offline", "ip_addrs": ["10.0.0.7"]},
    ):
        assert api.post("/api/runtime/workers", json=body).status_code == 201
    return api


def lease(api) -> str:
    """A task that w1 holds."""
    task = api.post("/api/runtime/llm-tasks", json={"prompt": f"Say {EVIL}"}).json()["id"]
    assert api.post(f"/api/runtime/llm-tasks/{task}/lease", json={"worker_id": "w1"}).status_code == 201
    return task


def press(page: Page, name: str, *, exact: bool = True) -> None:
    page.locator("main").get_by_role("button", name=name, exact=exact).click()


def agree(page: Page, name: str) -> str:
    """Press the button of the dialog, and give what the dialog said."""
    said = page.get_by_role("dialog").inner_text()
    page.get_by_role("dialog").get_by_role("button", name=name, exact=True).click()
    return said


def said(page: Page, text: str) -> None:
    expect(page.locator("#toasts")).to_contain_text(text)


def test_the_fleet_is_shown_and_filtered(fleet, open_page):
    lease(fleet)
    page = open_page("workers")
    expect(page.locator("article")).to_have_count(2)
    expect(page.locator("article").first).to_contain_text("1 / 2")
    expect(page.locator("article").first).to_contain_text(EVIL)
    expect(page.locator("main img")).to_have_count(0)
    expect(page.get_by_label("Status").locator("option")).to_have_text(["All (2)", "online (1)", "offline (1)"])
    page.get_by_label("Labels").select_option("gpu")
    expect(page.locator("article h2")).to_have_text(["w1"])
    page.get_by_role("link", name="Table").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page).to_have_url(re.compile(r"#/workers\?label=gpu&view=table$"))
    page.get_by_label("Labels").select_option("")
    page.get_by_label("Status").select_option("offline")
    expect(page.locator("tbody tr td:first-child")).to_have_text(["w2"])
    page.get_by_label("Status").select_option("")
    page.get_by_label("Name, address or system").fill("10.0.0")
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr td:first-child")).to_have_text(["w2"])
    page.get_by_label("Name, address or system").fill("nobody")
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_contain_text("Nothing here.")


def test_a_long_name_leaves_room_for_what_is_beside_it(api, open_page):
    api.post("/api/runtime/workers", json={"name": "w" * 128, "capabilities": {"labels": ["l" * 60]}})
    page = open_page("workers?view=table")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert page.locator(".scroll").evaluate("({ scrollWidth, clientWidth }) => scrollWidth - clientWidth") <= 0


def test_a_large_fleet_is_drawn_a_part_at_a_time(api, site, open_page):
    with psycopg.connect(site.settings["database.url"], autocommit=True) as connection:
        connection.execute(MANY)
    page = open_page("workers?view=table")
    expect(page.locator("tbody tr")).to_have_count(100)
    expect(page.locator("main")).to_contain_text("Shown: 100 of 120.")
    expect(page.locator("tbody tr td:first-child").nth(1)).to_have_text("node-2")
    press(page, "Show more")
    expect(page.locator("tbody tr")).to_have_count(120)
    page.get_by_label("Name, address or system").fill("node-11")
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_contain_text("Shown: 11 of 120.")


def test_a_worker_is_held_back_by_keyboard(fleet, open_page):
    page = open_page("workers?view=table")
    cordon = page.get_by_role("button", name="Cordon: w1")
    cordon.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("It gets no new tasks")
    page.keyboard.press("Escape")
    expect(cordon).to_be_focused()
    cordon.press("Enter")
    agree(page, "Cordon")
    expect(page.get_by_role("row", name="w1")).to_contain_text("cordoned")
    page.get_by_role("button", name="Uncordon: w1").click()
    expect(page.get_by_role("row", name="w1")).not_to_contain_text("cordoned")
    page.get_by_role("button", name="Drain: w1").click()
    agree(page, "Drain")
    expect(page.get_by_role("row", name="w1")).to_contain_text("drained")
    assert fleet.get("/api/runtime/workers/w1").json()["draining"]


def test_what_happens_elsewhere_is_shown(fleet, open_page):
    page = open_page("workers?worker=w1")
    expect(page.locator(".live")).to_have_text("live")
    expect(page.locator("main")).to_contain_text("0 / 2")
    task = lease(fleet)
    link = page.get_by_role("link", name=task)
    expect(link).to_have_attribute("href", f"#/tasks?task={task}")
    expect(page.get_by_role("row", name=task)).to_contain_text(f"Say {EVIL}")
    expect(page.locator("main img")).to_have_count(0)
    fleet.post("/api/runtime/workers/w1/cordon")
    expect(page.locator("header.bar")).to_contain_text("cordoned")


def test_a_worker_that_holds_leases_is_removed_after_a_second_look(fleet, open_page, trouble):
    trouble.expect("409")
    task = lease(fleet)
    page = open_page("workers?worker=w1", language="uk")
    press(page, "Вилучити")
    agree(page, "Вилучити")
    expect(page.get_by_role("dialog")).to_contain_text("Активних оренд: 1.")
    page.keyboard.press("Escape")
    press(page, "Вилучити")
    agree(page, "Вилучити")
    expect(page.get_by_role("dialog")).to_contain_text("Активних оренд: 1.")
    agree(page, "Вилучити й завершити оренди")
    expect(page.locator("article h2")).to_have_text(["w2"])
    assert fleet.get(f"/api/runtime/llm-tasks/{task}").json()["status"] == "queued"
    assert fleet.get("/api/runtime/workers/w1").status_code == 404


def test_an_agent_does_what_it_is_told(api, agent, open_page):
    api.post("/api/runtime/workers", json={"name": "w1", "url": agent.url})
    page = open_page("workers?worker=w1")
    press(page, "Ask how it is")
    expect(page.locator("main")).to_contain_text("agent-1")
    press(page, "Update")
    page.get_by_label("Repository").fill("https://git.example.org/agent.git")
    agree(page, "Update")
    said(page, "Update: w1 – done.")
    press(page, "Restart")
    assert "may have to begin anew" in agree(page, "Restart")
    said(page, "Restart: w1 – done.")
    press(page, "Uninstall")
    assert "removes itself from its machine" in agree(page, "Uninstall")
    said(page, "Uninstall: w1 – done.")
    expect(page.locator("header.bar")).to_contain_text("cordoned")
    assert [each.path for each in agent.errands] == ["/self-update", "/restart", "/uninstall"]
    assert agent.errands[0].json == {"repo_url": "https://git.example.org/agent.git"}


def test_an_agent_that_fails_is_said_to(api, agent, open_page, trouble):
    trouble.expect("502")
    api.post("/api/runtime/workers", json={"name": "w1", "url": agent.url})
    agent.mode = "500"
    page = open_page("workers?worker=w1")
    press(page, "Ask how it is")
    expect(page.locator("main")).to_contain_text("the agent answered 500 to GET /health")
    expect(page.locator("header.bar")).to_contain_text("offline")
    press(page, "Restart")
    agree(page, "Restart")
    expect(page.locator(".toast.bad")).to_contain_text("/restart of worker w1")


def test_a_machine_is_installed_by_a_command(api, open_page, trouble):
    trouble.expect("404")
    page = open_page("workers?worker=w9")
    expect(page.locator("main")).to_contain_text("No worker of this name has come yet")
    press(page, "Install a worker")
    expect(page.get_by_label("Name")).to_have_value("w9")
    expect(page.get_by_role("dialog")).to_contain_text("http.public_url is not set")
    page.get_by_label("Tasks at once").fill("3")
    page.get_by_label("Labels").fill(" gpu, it's ,")
    page.keyboard.press("Enter")
    command = page.get_by_role("dialog").locator("pre").inner_text()
    found = re.fullmatch(
        r"curl -fsS '(.*)/api/runtime/agent-install-script\?code=(\S+)&label=gpu&label=it%27s&max_concurrency=3' \| sh",
        command,
    )
    assert found, command
    assert page.url.startswith(found[1])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("dialog").get_by_role("button", name="Copy").click()
    said(page, "Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == command
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_text(found[2])).to_have_count(0)
    exchanged = api.post("/api/runtime/enrolments/exchange", json={"code": found[2]}).json()
    assert exchanged["worker"] == "w9"
    # Its token is told of, and can be removed.
    page.reload()
    press(page, "Remove: ", exact=False)
    agree(page, "Remove")
    said(page, " – done.")
    assert api.get("/api/runtime/workers/w9/tokens").status_code == 404
    expect(page.locator("main .problem")).to_have_count(0)


def test_a_token_is_shown_once(fleet, open_page):
    page = open_page("workers?worker=w1")
    press(page, "Make a token")
    secret = page.get_by_role("dialog").locator("pre").inner_text()
    assert secret.startswith("bloomw_")
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("button", name="Remove: ")).to_have_count(1)
    expect(page.get_by_text(secret)).to_have_count(0)
    headers = {"X-Runtime-API-Key": secret}
    body = {"worker_id": "w1", "max": 1, "wait_seconds": 0}
    assert fleet.post("/api/runtime/leases/claim", json=body, headers=headers).status_code == 200


def test_a_worker_is_registered_by_hand_but_none_is_changed(fleet, open_page, trouble):
    trouble.expect("404", "400")
    page = open_page("workers")
    press(page, "Register by hand")
    page.get_by_role("dialog").get_by_label("Name").fill("w1")
    agree(page, "Register by hand")
    expect(page.get_by_role("dialog")).to_contain_text("There is a worker w1 already")
    page.get_by_role("dialog").get_by_label("Name").fill("w3/4?")
    page.get_by_label("URL").fill("http://127.0.0.1:9")
    agree(page, "Register by hand")
    expect(page.get_by_role("dialog").locator(".problem")).to_contain_text("The server did not accept that.")
    page.get_by_role("dialog").get_by_label("Name").fill("w3?")
    page.get_by_label("Claude CLI").uncheck()
    agree(page, "Register by hand")
    expect(page.locator("h1")).to_have_text("Workers / w3?")
    expect(page.locator("main")).to_contain_text("no Claude CLI")
    capabilities = {"claude_cli": False, "max_concurrency": 1, "labels": []}
    assert fleet.get("/api/runtime/workers/w3%3F").json()["capabilities"] == capabilities


def test_what_cannot_be_known_is_not_shown_as_nothing(fleet, open_page, trouble):
    trouble.expect("503")
    page = open_page("keys")
    problem = {"type": "about:blank", "status": 503, "detail": "no database at the moment"}
    page.route(
        re.compile(r"/api/runtime/(workers/w1/tokens|llm-tasks)"), lambda route: route.fulfill(status=503, json=problem)
    )
    page.goto(page.url.replace("#/keys", "#/workers?worker=w1"))
    expect(page.locator("main .problem")).to_have_count(2)
    expect(page.locator("main")).to_contain_text("0 / 2")
    page.unroute_all()
    page.route(re.compile(r"/api/runtime/workers$"), lambda route: route.fulfill(status=503, json=problem))
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Keys").click()
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Workers").click()
    expect(page.locator("main > div .problem")).to_contain_text("no database at the moment")
    expect(page.locator("main")).not_to_contain_text("There is no worker yet")
