"""The page Audit: what was done is found, followed as it happens, and taken away as a file."""

import json
import re

import psycopg
import pytest
from playwright.sync_api import Page, expect

LIST = "**/api/runtime/audit?*"
EVIL = "<img src=x onerror=alert(1)>"

# Entries that nothing but a hand at the database writes, one a second, the newest now.
ADD = """
INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
SELECT gen_random_uuid(), bloom_now_ms() - 1000 * each, %(action)s, 'test', %(entity)s, 'hand', %(detail)s
  FROM generate_series(0, %(count)s - 1) AS each
"""


@pytest.fixture
def add(api, site):
    """Write entries into the trail."""

    def add(count: int = 1, *, action: str = "test.done", entity: str = "e", detail: str = "") -> None:
        with psycopg.connect(site.settings["database.url"], autocommit=True) as connection:
            connection.execute(ADD, {"action": action, "entity": entity, "detail": detail, "count": count})

    return add


def rows(page: Page):
    return page.locator("tbody tr")


def asked(page: Page) -> list[str]:
    """The requests for the trail, from now on."""
    found: list[str] = []
    page.on("request", lambda request: found.append(request.url) if "/api/runtime/audit" in request.url else None)
    return found


def test_entries_are_found_by_what_the_address_says(api, add, open_page):
    add(entity="one")
    add(action="test.begun", entity="two", detail="of two")
    api.post("/api/runtime/llm-tasks", json={"context_id": "c", "agent_slug": "a", "prompt": "p"})
    page = open_page("audit?action=test.*")
    expect(rows(page)).to_have_count(2)
    page.get_by_label("Id", exact=True).fill("two")
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("of two")
    expect(page).to_have_url(re.compile(r"#/audit\?action=test\.\*&entity_id=two$"))
    expect(page.get_by_label("Id", exact=True)).to_be_focused()
    page.get_by_label("From").fill("2999-01-01T00:00")
    expect(page.get_by_text("No entry fits.")).to_be_visible()
    page.go_back()
    page.go_back()
    expect(rows(page)).to_have_count(2)
    page.get_by_role("link", name="Without filters").click()
    page.get_by_label("Action").fill("task.*")
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(1)
    page.get_by_role("link", name="task.created").click()
    expect(page.get_by_label("Action")).to_have_value("task.created")
    [task] = api.get("/api/runtime/llm-tasks").json()
    rows(page).get_by_role("link", name=task["id"]).click()
    expect(page).to_have_url(re.compile(rf"#/tasks\?task={task['id']}$"))


def test_new_entries_come_in_on_top_and_nobody_asks_for_them(add, open_page):
    add(120, entity="old")
    page = open_page("audit?action=test.*")
    expect(rows(page)).to_have_count(100)
    page.route(LIST, lambda route: None)  # whoever asks waits
    add(entity="new")
    add(action="other.done", entity="unwanted")
    expect(rows(page).first).to_contain_text("new")
    expect(rows(page)).to_have_count(101)
    # Who reads further down is not disturbed.
    page.evaluate("scrollTo(0, 2000)")
    add(2, entity="newer")
    news = page.get_by_role("button", name="2 new entries: show them")
    expect(news).to_be_in_viewport()
    expect(rows(page)).to_have_count(101)
    page.unroute(LIST)
    news.click()
    expect(rows(page).first).to_contain_text("newer")
    expect(news).to_have_count(0)
    assert page.evaluate("scrollY") == 0
    page.get_by_role("button", name="Pause").click()
    add(entity="newest")
    expect(rows(page).first).to_contain_text("newer")
    page.get_by_role("button", name="Go on").click()
    expect(rows(page).first).to_contain_text("newest")


def test_scrolling_back_to_the_top_shows_what_was_held(add, open_page):
    add(100)
    page = open_page("audit?action=test.*", language="uk")
    expect(rows(page)).to_have_count(100)
    page.evaluate("scrollTo(0, 2000)")
    add(5, entity="newer")
    expect(page.get_by_role("button", name="5 нових записів: показати")).to_be_visible()
    page.evaluate("scrollTo(0, 0)")
    expect(rows(page).first).to_contain_text("newer")


def test_older_entries_are_a_page_away_and_stay_where_they_are(add, open_page):
    add(150)
    page = open_page("audit?action=test.*")
    page.get_by_role("link", name="Next page").click()
    expect(rows(page)).to_have_count(50)
    add(entity="new")
    expect(rows(page)).to_have_count(50)
    page.get_by_role("link", name="First page").click()
    expect(rows(page)).to_have_count(100)
    expect(rows(page).first).to_contain_text("new")


def test_what_is_found_is_taken_away_as_a_file(add, open_page):
    add(3, detail="=1+1")
    add(action="other.done")
    page = open_page("audit?action=test.*")
    expect(rows(page)).to_have_count(3)
    with page.expect_download() as told:
        page.get_by_role("link", name="Export as CSV").click()
    assert told.value.suggested_filename.endswith(".csv")
    assert told.value.path().read_text().count("'=1+1") == 3
    with page.expect_download() as told:
        page.get_by_role("link", name="Export as JSON lines").click()
    lines = told.value.path().read_text().splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["test.done"] * 3


def test_an_entry_is_text(add, open_page):
    add(action=EVIL, entity=EVIL, detail=EVIL * 10)
    page = open_page("audit")
    expect(rows(page).locator("td:not(:first-child)")).to_contain_text([EVIL, EVIL, "hand", EVIL])
    add(action=EVIL, entity=f"new {EVIL}", detail=EVIL)
    expect(rows(page).first).to_contain_text(f"new {EVIL}")
    expect(page.locator("img")).to_have_count(0)


def test_a_failure_is_shown_as_one(add, open_page, trouble):
    trouble.expect("503")
    add()
    page = open_page("audit?action=test.*")
    expect(rows(page)).to_have_count(1)
    problem = {"type": "urn:problem-type:bloomd:unavailable", "detail": "PostgreSQL is away"}
    page.route(LIST, lambda route: route.fulfill(status=503, json=problem))
    page.get_by_label("Id", exact=True).fill("nothing")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("PostgreSQL is away")
    expect(page.get_by_text("No entry fits.")).to_have_count(0)
    with page.expect_request(LIST):
        page.get_by_role("button", name="Try again").click()
    page.unroute(LIST)  # from now on it is tried without a click
    expect(page.get_by_text("No entry fits.")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
