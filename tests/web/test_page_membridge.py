"""The page Membridge: who leads, who remembers what, and the projects that bloomd brings to the nodes."""

import re
import time
from typing import Any

import pytest
from bloomd_process import KEY
from peers import reply
from playwright.sync_api import Page, Route, expect

EVIL = "<img src=x onerror=alert(1)>"

SAME, OTHER = "a" * 64, "b" * 64
LED, AGREED, SILENT = "56a7cd481733633b", "956b51b920c28885", "1cb0f5a9e3a8e4dd"


def node(name: str, **said: Any) -> dict[str, Any]:
    return {"node_id": name, "role": "secondary", "last_seen": time.time(), "ip_addrs": [], **said}


def configure(api, url: str, key: str = "mk") -> None:
    answer = api.post("/api/runtime/config", json={"membridge_server_url": url, "admin_key": key})
    assert answer.status_code == 200, answer.text


@pytest.fixture
def plane(api, membridge):
    """A Membridge with three projects, of which one says next to nothing, that bloomd is configured for."""
    membridge.projects = [
        {"name": "led", "canonical_id": LED, "nodes_count": 2, "source": "heartbeat", "last_seen": time.time()},
        {"name": EVIL, "canonical_id": AGREED, "nodes_count": 2, "source": "manual"},
        {"canonical_id": SILENT},
    ]
    membridge.nodes = {
        LED: [node("n1", role="primary", obs_count=1204, db_sha=SAME), node("n2", obs_count=7, db_sha=OTHER)],
        AGREED: [node("n1", db_sha=SAME), node(EVIL, db_sha=SAME)],
        SILENT: [{"node_id": "n3"}],
    }
    membridge.primary = {LED: "n1"}
    membridge.jobs = [{"id": "j", "action": "push", "project": EVIL, "agent": "n1", "status": "failed", "detail": EVIL}]
    configure(api, membridge.url)
    yield membridge
    for key in ("membridge_server_url", "admin_key"):
        api.delete(f"/api/runtime/config/{key}")


def table(page: Page, name: str):
    return page.get_by_role("region", name=name, exact=True).locator("tbody tr")


def fact(page: Page, name: str):
    return page.locator(".facts div").filter(has=page.get_by_text(name, exact=True)).locator("dd").first


def press(page: Page, name: str) -> None:
    """A button of the dialog, which is over after it."""
    page.get_by_role("dialog").get_by_role("button", name=name, exact=True).click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_without_a_membridge_the_way_to_one_is_shown(api, open_page):
    page = open_page("membridge")
    expect(page.get_by_text("No Membridge is configured.")).to_be_visible()
    page.get_by_role("link", name="Set URL and key").click()
    expect(page).to_have_url(re.compile("#/runtime$"))


def test_whether_nodes_remember_the_same_is_seen_at_a_glance(plane, open_page):
    page = open_page("membridge")
    expect(fact(page, "Version")).to_have_text("0.4.0")
    rows = table(page, "Projects")
    expect(rows.nth(0)).to_have_text(re.compile(r"led\s*mismatch\s*n1\s*2\s*(now|.*ago)"))
    expect(rows.nth(1)).to_have_text(f"{EVIL}match–2unknown–")
    expect(rows.nth(2)).to_have_text(f"{SILENT}unknown–unknownunknown–")
    expect(table(page, "Pushes and pulls")).to_have_text(f"unknownPush{EVIL}n1failed{EVIL}")
    rows.nth(0).get_by_role("link").focus()
    page.keyboard.press("Enter")
    expect(fact(page, "Primary")).to_have_text("n1")
    expect(page.locator("main")).to_be_focused()
    nodes = table(page, "Nodes")
    expect(nodes.nth(0)).to_contain_text("primary1,204match" + SAME[:10])
    expect(nodes.nth(1)).to_contain_text("secondary7mismatch" + OTHER[:10])
    expect(nodes.nth(1).locator("code")).to_have_attribute("title", OTHER)
    page.go_back()
    rows.nth(1).get_by_role("link").click()
    expect(table(page, "Nodes").nth(1)).to_contain_text(EVIL)
    expect(page.locator("img")).to_have_count(0)


def test_a_node_is_promoted_when_that_is_confirmed(api, plane, open_page):
    leading = {"preferred_primary": "n1", "epoch": 4, "issued_at": time.time(), "expires_at": time.time() + 1800}
    plane._leadership = lambda project: {**leading, "nodes": plane.nodes[project]}
    page = open_page(f"membridge?project={LED}")
    expect(fact(page, "Epoch")).to_have_text("4")
    expect(fact(page, "Until")).to_contain_text("in 29 min")
    page.get_by_role("button", name="Promote: n2").click()
    expect(page.get_by_role("dialog")).to_contain_text("primary of led, under a new epoch. Now: n1, epoch 4.")
    page.get_by_role("dialog").get_by_role("button", name="Back").click()
    assert plane.primary[LED] == "n1"
    page.get_by_role("button", name="Promote: n2").click()
    page.get_by_label("For how long").select_option("28800")
    leading.update(preferred_primary="n2", epoch=5)
    press(page, "Promote")
    expect(page.get_by_text("n2 is the primary now")).to_be_visible()
    expect(fact(page, "Primary")).to_have_text("n2")
    expect(page.get_by_role("button", name="Extend: n2")).to_be_visible()
    [sent] = [request.json for request in plane.requests if request.method == "POST"]
    assert sent == {"primary_node_id": "n2", "lease_seconds": 28800}
    [entry] = api.get("/api/runtime/audit", params={"action": "membridge.promoted"}).json()
    assert entry["entity_id"] == LED


def test_a_key_that_membridge_refuses_signs_nobody_out(api, plane, open_page, trouble):
    trouble.expect("401")
    configure(api, plane.url, key="wrong")
    page = open_page("membridge")
    expect(page.get_by_role("alert").first).to_contain_text("invalid admin key")
    expect(page.get_by_text("Managed projects")).to_be_visible()
    expect(page.get_by_label("API key")).to_have_count(0)


def test_another_membridge_may_answer_otherwise(plane, open_page, trouble):
    trouble.expect("404")
    said = {"/projects": reply({"projects": plane.projects}), "/health": reply("well"), "/jobs": reply({}, 404)}
    usual = plane.answer
    plane.answer = lambda request: said.get(request.path) or usual(request)
    page = open_page("membridge")
    expect(table(page, "Projects")).to_have_count(3)
    expect(fact(page, "Version")).to_have_text("unknown")
    expect(page.get_by_role("alert")).to_contain_text("That is not there.")
    said["/projects"] = reply("none")
    page.reload()
    expect(page.get_by_role("alert").first).to_contain_text("Membridge's answer to projects cannot be read.")


def test_managed_projects_are_there_before_membridge_has_answered(api, plane, open_page, trouble):
    trouble.expect("502")
    api.post("/api/runtime/projects", json={"name": "docs", "repo_url": "https://git.example.org/docs.git"})
    page = open_page("keys")
    held: list[Route] = []
    page.route("**/api/membridge/**", lambda route: held.append(route))
    page.get_by_role("link", name="Membridge").click()
    expect(table(page, "Managed projects")).to_contain_text("docs")
    expect(page.get_by_text("Membridge is being asked")).to_have_count(3)
    for route in held:
        route.fulfill(status=502, json={"detail": "Membridge cannot be reached"})
    expect(page.get_by_role("alert")).to_contain_text(["Membridge cannot be reached"])
    expect(page.get_by_role("link", name="Set URL and key")).to_be_visible()
    expect(table(page, "Managed projects")).to_contain_text("docs")


def test_a_project_is_created_brought_to_nodes_and_forgotten(api, plane, agent, open_page, trouble):
    trouble.expect("400")
    for name in ("n1", "n2"):
        api.post("/api/runtime/workers", json={"name": name, "url": agent.url, "status": "online"})
    page = open_page("membridge")
    page.get_by_role("button", name="Add a project").click()
    page.get_by_label("Name").fill("docs")
    page.get_by_label("Repository").fill(f"https://olena:{KEY}@git.example.org/docs.git")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("must not hold a user name, password")
    page.get_by_label("Repository").fill("https://git.example.org/docs.git")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="docs")).to_be_visible()
    nodes = table(page, "Managed by bloomd: Nodes")

    page.get_by_role("button", name="Clone").click()
    page.get_by_label("Node", exact=True).fill("n1")
    press(page, "Clone")
    expect(nodes).to_have_text(re.compile(r"n1cloned/srv/docs"))
    expect(page.get_by_text("docs: done on 1 of 1")).to_be_visible()

    agent.replies["/clone"] = reply({"ok": False, "error": EVIL})
    page.get_by_role("button", name="Propagate").click()
    expect(page.get_by_role("dialog")).to_contain_text("All other nodes online (1) clone docs: n2.")
    press(page, "Propagate")
    expect(page.get_by_text("docs: done on 0 of 1")).to_be_visible()
    expect(nodes.nth(1)).to_contain_text("failed")
    expect(nodes.nth(1)).to_contain_text(EVIL)

    page.get_by_role("button", name="Memory").click()
    page.get_by_label("Direction").select_option("Pull")
    page.get_by_label("Node", exact=True).fill("n1")
    with page.expect_response("**/sync-memory"):
        press(page, "Memory")
    assert [each.json for each in plane.requests if each.path == "/sync/pull"] == [{"project": "docs", "agent": "n1"}]

    page.get_by_role("button", name="Forget").click()
    expect(page.get_by_role("dialog")).to_contain_text("forgets it and its nodes (2)")
    press(page, "Forget")
    expect(page).to_have_url(re.compile("#/membridge$"))
    expect(table(page, "Managed projects")).to_have_count(0)
    assert api.get("/api/runtime/projects").json() == []
    expect(page.locator("img")).to_have_count(0)
