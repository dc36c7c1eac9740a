"""The frame around every page: its languages, its notices, the way back, and what it says of itself."""

from playwright.sync_api import expect


def test_a_page_opens(api, open_page):
    page = open_page("keys")
    expect(page.locator("h1")).to_have_text("Keys")
