"""The page Runtime: Membridge is configured, tried and unset there, and every setting is found."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

EVIL = "<img src=x onerror=alert(1)>"
KEY = "membridge-key-of-the-tests"
NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def runtime(api) -> Iterator[Any]:
    """The API; what was set through it is unset in the end."""
    yield api
    for name in ("membridge_server_url", "admin_key"):
        api.delete(f"/api/runtime/config/{name}")


def setting(page: Page, name: str) -> Any:
    return (
        page.get_by_role("region", name="All settings")
        .get_by_role("row")
        .filter(has=page.get_by_text(name, exact=True))
    )


def test_membridge_is_set_and_tried_and_unset(runtime, open_page, membridge):
    membridge.key = KEY
    membridge.agents = [{"name": "gpu-1", "status": "online"}]
    page = open_page("runtime")
    expect(page.get_by_role("button", name="Test Connection")).to_be_disabled()
    expect(page.locator(".origin")).to_have_text(["default Set nowhere."] * 2)
    page.get_by_label("URL of the Membridge server").fill(membridge.url)
    page.get_by_label("Admin key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#toasts")).to_have_text("Saved, and in force.")
    expect(page.get_by_label("Admin key")).to_have_value("")
    expect(page.get_by_label("Admin key")).to_have_attribute("placeholder", "memb****ests")
    expect(page.locator(".origin .badge")).to_have_text(["saved here (API)"] * 2)
    expect(setting(page, "membridge.server_url")).to_contain_text(membridge.url)
    page.get_by_role("button", name="Test Connection").click()
    answer = page.get_by_role("region", name="Connection")
    for name, value in {
        "Service": "membridge-control-plane",
        "Version": "0.4.0",
        "Projects": "0",
        "Agents": "1",
    }.items():
        expect(answer.locator("dt", has_text=name).locator("+ dd")).to_have_text(value)
    expect(answer).to_contain_text(re.compile(r"Last test:.*connected"))
    page.get_by_role("button", name="Unset membridge.admin_key").click()
    dialog = page.get_by_role("dialog", name="Unset: membridge.admin_key")
    expect(dialog).to_contain_text("forgotten on every node")
    dialog.get_by_role("button", name="Unset").click()
    expect(page.get_by_label("Admin key")).to_have_attribute("placeholder", "no key is set")
    expect(page.locator(".origin .badge")).to_have_text(["saved here (API)", "default"])
    page.get_by_role("button", name="Unset membridge.server_url").click()
    page.get_by_role("dialog").get_by_role("button", name="Unset").click()
    expect(page.get_by_label("URL of the Membridge server")).to_have_value("")
    expect(page.get_by_label("URL of the Membridge server")).to_be_focused()


def test_what_the_server_refuses_is_said_at_its_field_and_stays_typed(runtime, open_page, trouble):
    trouble.expect("400")
    page = open_page("runtime")
    url = page.get_by_label("URL of the Membridge server")
    url.fill("ftp://somewhere")
    page.get_by_label("Admin key").fill(KEY)
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#membridge-url-error")).to_be_visible()
    expect(url).to_be_focused()
    expect(url).to_have_attribute("aria-invalid", "true")
    expect(url).to_have_value("ftp://somewhere")
    expect(page.get_by_label("Admin key")).to_have_value(KEY)
    # What changes meanwhile takes nothing away from who types.
    runtime.post("/api/runtime/config", json={"membridge_server_url": NOBODY, "admin_key": KEY})
    expect(page.locator(".origin .badge").first).to_have_text("saved here (API)")
    expect(url).to_have_value("ftp://somewhere")


def test_an_answer_from_anywhere_is_text(runtime, open_page):
    runtime.post("/api/runtime/config", json={"membridge_server_url": NOBODY, "admin_key": KEY})
    page = open_page("runtime")
    said = {"connected": True, "health": {"service": EVIL, "version": {"a": [EVIL]}, "projects": 3}}
    page.route("**/test-connection", lambda route: route.fulfill(json=said))
    page.get_by_role("button", name="Test Connection").click()
    connection = page.get_by_role("region", name="Connection")
    expect(connection.locator("dt", has_text="Service").locator("+ dd")).to_have_text(EVIL)
    expect(connection.locator("dt", has_text="Agents").locator("+ dd")).to_have_text("not said")
    said |= {"connected": False, "error": EVIL}
    page.get_by_role("button", name="Test Connection").click()
    expect(connection.locator(".problem")).to_have_text(f"There is no connection.{EVIL}")
    expect(connection.locator("dd")).to_have_count(0)
    expect(page.locator("img")).to_have_count(0)


def test_where_a_value_comes_from_and_how_to_unset_it(runtime, open_page):
    page = open_page("keys")

    def answer(route: Route) -> None:
        told = route.fetch().json()
        for each in told["settings"]:
            if each["key"] == "membridge.server_url":
                each |= {"value": NOBODY, "source": "environment", "where": "MEMBRIDGE_SERVER_URL", "default": False}
        route.fulfill(json=told | {"warnings": [EVIL]})

    page.route("**/api/runtime/settings", answer)
    page.get_by_role("link", name="Runtime", exact=True).click()
    expect(page.locator(".origin").first).to_contain_text("environment The variable MEMBRIDGE_SERVER_URL. To unset it")
    expect(page.get_by_role("button", name=re.compile("Unset"))).to_have_count(0)
    expect(setting(page, "membridge.server_url")).to_contain_text("MEMBRIDGE_SERVER_URL")
    expect(page.locator(".warnings")).to_have_text(EVIL)


def test_a_setting_is_found_and_the_address_holds_what_was_asked(runtime, site, open_page):
    page = open_page("runtime")
    page.get_by_role("searchbox", name="Search").fill("POOL")
    expect(page.get_by_text("1 setting", exact=True)).to_be_visible()
    expect(setting(page, "database.pool_size")).to_contain_text("10")
    expect(page).to_have_url(re.compile(r"#/runtime\?q=POOL$"))
    page.get_by_role("searchbox", name="Search").fill("")
    expect(page).to_have_url(re.compile(r"#/runtime$"))
    page.get_by_label("Where from").select_option("file")
    expect(setting(page, "http.api_key")).to_contain_text("****")
    expect(setting(page, "http.api_key")).to_contain_text(f"{site.file}:")
    expect(setting(page, "database.pool_size")).to_have_count(0)
    shared = open_page("runtime?q=nothing-like-it&source=file")
    expect(shared.get_by_text("No setting fits.")).to_be_visible()
    expect(shared.get_by_role("searchbox")).to_have_value("nothing-like-it")
    shared.get_by_label("Where from").select_option("")
    shared.get_by_role("searchbox").fill("log.level")
    expect(shared).to_have_url(re.compile("q=log.level"))
    shared.go_back()
    expect(shared.get_by_label("Where from")).to_have_value("file")
    expect(shared.get_by_role("searchbox")).to_have_value("nothing-like-it")


def test_settings_that_cannot_be_had_are_a_problem(runtime, open_page, trouble):
    trouble.expect("503")
    page = open_page("keys")
    away = {"type": "urn:problem-type:bloomd:unavailable", "status": 503, "detail": "PostgreSQL is away"}
    page.route("**/api/runtime/config", lambda route: route.fulfill(status=503, json=away))
    page.get_by_role("link", name="Runtime", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("PostgreSQL is away")
    expect(page.get_by_label("Admin key")).to_have_count(0)
    with page.expect_request("**/api/runtime/config"):
        page.get_by_role("button", name="Try again").click()
    page.unroute("**/api/runtime/config")  # from now on it is tried without a click
    expect(page.get_by_label("Admin key")).to_be_visible()


def test_in_ukrainian_on_a_narrow_screen(runtime, open_page):
    page = open_page("runtime", language="uk", width=360)
    expect(page.get_by_role("button", name="Перевірити з'єднання")).to_be_visible()
    expect(page.get_by_text(re.compile(r"^\d+ налаштуван"))).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_what_is_built_in_is_said_to_be(runtime, open_page):
    page = open_page("keys")
    config = {
        "membridge_server_url": NOBODY,
        "admin_key_masked": "memb****ests",
        "connected": False,
        "last_test": None,
        "stored": [],
    }
    page.route("**/api/runtime/config", lambda route: route.fulfill(json=config))
    page.get_by_role("link", name="Runtime", exact=True).click()
    expect(page.locator(".origin")).to_have_text(["built in The Membridge inside bloomd."] * 2)
    expect(setting(page, "membridge.server_url")).to_contain_text(NOBODY)
    test = page.get_by_role("button", name="Test Connection")
    for field, saved in (("URL of the Membridge server", NOBODY), ("Admin key", "")):
        page.get_by_label(field).fill("http://127.0.0.1:2")
        expect(test).to_be_disabled()
        expect(page.get_by_text("Save first.")).to_be_visible()
        page.get_by_label(field).fill(saved)
        expect(test).to_be_enabled()
