"""Sign-in on the page: how a session begins, and each way in which it ends."""

import time

import httpx
import pytest
from bloomd_process import KEY
from playwright.sync_api import Page, expect
from servers import eventually

from bloomd.http import session
from bloomd.runtime.keys import digest

SECRET = "the-session-secret-of-the-tests"
WRONG = "not-a-key-of-this-server"


@pytest.fixture
def named(api):
    """A named key that is there for this test; its secret."""
    made = api.post("/api/runtime/keys", json={"name": "olena"})
    assert made.status_code == 201, made.text
    yield made.json()["secret"]
    for key in api.get("/api/runtime/keys").json():
        api.delete(f"/api/runtime/keys/{key['name']}")


def enter(page: Page, key: str) -> None:
    """Fill the form and send it, as whoever has a keyboard does."""
    page.get_by_label("API key").fill(key)
    page.keyboard.press("Enter")


def is_signed_in(site, cookies) -> bool:
    [cookie] = cookies
    with httpx.Client(base_url=site.url, cookies={cookie["name"]: cookie["value"]}, trust_env=False) as client:
        return client.get("/api/runtime/stats").status_code == 200


def test_the_key_is_sent_once_and_kept_nowhere(api, open_page, trouble, site):
    trouble.expect("401")
    page = open_page("keys", signed_in=False)
    expect(page.get_by_label("API key")).to_be_focused()
    enter(page, WRONG)
    expect(page.get_by_role("alert")).to_contain_text("This is not an API key of this server")
    expect(page.get_by_label("API key")).to_be_focused()
    enter(page, KEY)
    expect(page.get_by_role("heading", name="Keys")).to_be_visible()
    [cookie] = page.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == ("bloomd", True, "Lax", "/")
    assert 11.9 * 3600 < cookie["expires"] - time.time() < 12.1 * 3600
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
    assert KEY not in kept
    assert cookie["value"] not in kept
    assert KEY not in cookie["value"] + site.log.read_text()
    page.reload()
    expect(page.get_by_role("heading", name="Keys")).to_be_visible()


def test_the_form_leads_to_where_the_address_points(api, open_page):
    page = open_page("audit?actor=api-key", signed_in=False)
    enter(page, KEY)
    expect(page.get_by_role("heading", name="Audit")).to_be_visible()
    assert page.url.endswith("#/audit?actor=api-key")


def test_signing_out_ends_the_session_also_for_who_has_a_copy(api, open_page, site, trouble):
    trouble.expect("401")  # what the page asks for at that moment
    page = open_page("keys", signed_in=False)
    enter(page, KEY)
    expect(page.get_by_role("heading", name="Keys")).to_be_visible()
    cookies = page.context.cookies()
    assert is_signed_in(site, cookies)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    expect(page.get_by_text("Your session is over")).to_have_count(0)
    assert page.context.cookies() == []
    assert not is_signed_in(site, cookies)
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()


def test_a_session_that_is_over_leads_to_the_form_and_back(api, open_page, trouble):
    trouble.expect("401")
    page = open_page("keys")
    expect(page.get_by_role("heading", name="Keys")).to_be_visible()
    page.get_by_role("button", name="Make a key").click()
    page.get_by_label("Name").fill("unsent")
    expect(page.locator("#head .live")).to_have_text("live")  # nothing else asks, and hears it first
    send = page.get_by_role("dialog").get_by_role("button", name="Make a key").element_handle()
    page.context.clear_cookies()
    send.evaluate("button => button.click()")  # at once
    expect(page.get_by_text("Your session is over")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    enter(page, f" {KEY} ")  # with what a clipboard may add
    expect(page.get_by_role("heading", name="Keys")).to_be_visible()
    assert page.url.endswith("#/keys")
    # What was being written is there again.
    expect(page.get_by_role("dialog").get_by_label("Name")).to_have_value("unsent")
    expect(page.get_by_role("dialog").get_by_role("alert")).to_have_count(0)
    assert api.get("/api/runtime/keys").json() == []
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_signing_out_without_a_database_ends_it_here_and_says_what_is_left(open_page, trouble, start_site):
    trouble.expect("503")
    with start_site() as site:
        page = open_page("keys", site=site)
        expect(page.get_by_role("heading", name="Keys")).to_be_visible()
        assert site.ctl("stop", "database").returncode == 0
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("API key")).to_be_visible()
        expect(page.locator("#toasts")).to_contain_text("a copy of its cookie is good as before")
        page.close()


def test_a_session_ends_when_its_time_is_over(api, open_page, trouble, site, monkeypatch, named):
    trouble.expect("401")
    monkeypatch.setattr(session, "LIFE_MS", 4000)
    page = open_page("keys", signed_in=False)
    _, value = session.begin(SECRET, digest(KEY.encode()), "api-key")
    page.context.add_cookies([{"name": "bloomd", "value": value, "url": site.url}])
    page.reload()
    expect(page.get_by_role("cell", name="olena", exact=True)).to_be_visible()
    eventually(lambda: not is_signed_in(site, page.context.cookies()))
    # The next change that the page wants to show tells it.
    api.delete("/api/runtime/keys/olena").raise_for_status()
    expect(page.get_by_text("Your session is over")).to_be_visible()


def test_a_session_ends_with_its_key(api, open_page, trouble, named):
    trouble.expect("401")
    page = open_page("keys", signed_in=False)
    enter(page, named)
    expect(page.get_by_role("cell", name="olena (signed in with it)")).to_be_visible()
    api.delete("/api/runtime/keys/olena").raise_for_status()
    expect(page.get_by_text("Your session is over")).to_be_visible()


def test_who_guesses_is_stopped(api, open_page, trouble, site):
    trouble.expect("429")
    client = {"x-forwarded-for": "198.51.100.7"}
    with httpx.Client(base_url=site.url, headers=client, trust_env=False) as guesser:
        guesses = [guesser.post("/api/runtime/session", json={"key": f"{WRONG}{n}"}).status_code for n in range(11)]
    assert guesses == [401] * 10 + [429]
    page = open_page(signed_in=False)
    page.set_extra_http_headers(client)
    enter(page, KEY)
    expect(page.get_by_role("alert")).to_contain_text("Too many requests.")
    page.set_extra_http_headers({})
    enter(page, KEY)
    expect(page.get_by_label("API key")).to_have_count(0)


def test_without_a_key_all_is_open_and_the_page_says_so_until_there_is_one(open_page, trouble, start_site):
    trouble.expect("401", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION")
    with start_site(http__api_key=None) as site:
        page = open_page("keys", site=site, signed_in=False)
        expect(page.get_by_role("heading", name="Keys")).to_be_visible()
        expect(page.get_by_text("whoever reaches this server may do everything")).to_be_visible()
        expect(page.get_by_role("button", name="Sign out")).to_have_count(0)
        page.get_by_role("button", name="Make a key").click()
        page.get_by_label("Name").fill("first")
        page.keyboard.press("Enter")
        # From now on nobody is let in without it, this page neither; and yet it can be read.
        expect(page.locator("form.sign-in")).to_have_count(1)
        secret = page.get_by_role("dialog").locator(".secret").text_content()
        page.get_by_role("dialog").get_by_role("button", name="Close").click()
        enter(page, secret)
        expect(page.get_by_role("cell", name="first (signed in with it)")).to_be_visible()
        expect(page.get_by_text("whoever reaches this server may do everything")).to_have_count(0)
