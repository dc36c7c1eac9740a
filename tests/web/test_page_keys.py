"""The page Keys: one is made, shown once, and removed."""

import httpx
import pytest
from playwright.sync_api import expect


@pytest.fixture
def named(api):
    """The name of a key that is there for this test only."""
    yield "olena"
    api.delete("/api/runtime/keys/olena")


def test_a_key_is_made_shown_once_and_removed(site, named, open_page):
    page = open_page("keys")
    page.get_by_role("button", name="Make a key").click()
    page.get_by_label("Name").fill(named)
    page.keyboard.press("Enter")
    secret = page.get_by_role("dialog").locator("pre").inner_text()
    page.get_by_role("button", name="Close").click()
    row = page.get_by_role("row", name=named)
    expect(row).to_contain_text("never")
    expect(page.get_by_text(secret)).to_have_count(0)
    with httpx.Client(base_url=site.url, headers={"X-Runtime-API-Key": secret}, trust_env=False) as client:
        assert client.get("/api/runtime/stats").status_code == 200
        remove = page.get_by_role("button", name=f"Remove: {named}")
        remove.press("Enter")
        expect(page.get_by_role("dialog")).to_contain_text("Whoever uses it is refused from now on")
        page.keyboard.press("Escape")
        expect(remove).to_be_focused()
        remove.press("Enter")
        page.get_by_role("dialog").get_by_role("button", name="Remove").click()
        expect(page.locator("#toasts")).to_contain_text(f"The key {named} is gone.")
        expect(row).to_have_count(0)
        assert client.get("/api/runtime/stats").status_code == 401


def test_a_name_that_is_taken_is_said_to_be(api, named, open_page, trouble):
    trouble.expect("409")
    api.post("/api/runtime/keys", json={"name": named})
    page = open_page("keys", language="uk", width=360)
    page.get_by_role("button", name="Створити ключ").click()
    page.get_by_label("Ім'я").fill(named)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").locator(".problem")).to_contain_text("Зараз це неможливо.")
    expect(page.get_by_label("Ім'я")).to_have_value(named)


def test_a_failure_is_not_shown_as_an_empty_list(api, open_page, trouble):
    trouble.expect("503")
    page = open_page("audit")
    problem = {"type": "about:blank", "status": 503, "detail": "no database at the moment"}
    page.route("**/api/runtime/keys", lambda route: route.fulfill(status=503, json=problem))
    page.goto(page.url.replace("#/audit", "#/keys"))
    expect(page.locator("main .problem")).to_contain_text("no database at the moment")
    expect(page.locator("main")).not_to_contain_text("There is no key with a name yet.")


def test_that_the_last_key_goes_is_said_before_and_seen_after(open_page, start_site):
    with start_site(http__api_key=None) as site:
        secret = site.http.post("/api/runtime/keys", json={"name": "olena"}).json()["secret"]
        page = open_page("keys", site=site, signed_in=False)
        page.get_by_label("API key").fill(secret)
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Remove: olena").click()
        expect(page.get_by_role("dialog")).to_contain_text("whoever reaches this server may do everything")
        page.get_by_role("dialog").get_by_role("button", name="Remove").click()
        expect(page.locator("#notice")).to_contain_text("API key")
        expect(page.get_by_role("button", name="Sign out")).to_have_count(0)
        page.close()
