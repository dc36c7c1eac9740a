"""The frame around every page: live or not, its languages, the way back, and whether everybody can use it."""

import os
import re
import time
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from bloomd.http.page import load

PAGES = ("overview", "tasks", "workers", "runtime", "membridge", "audit", "keys")
TASKS = "/api/runtime/llm-tasks"
EVIL = "<script>alert(1)</script>"
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}

# Where the run leaves its screenshots, when somebody wants them.
SHOTS = os.environ.get("SCREENSHOTS")

LOOKS = [("light", 1280, "en"), ("dark", 360, "uk"), *([("light", 360, "en"), ("dark", 1280, "uk")] if SHOTS else [])]


@pytest.fixture
def populated(api):
    """Something of everything, and markup in all of it."""
    for name in ("w1", "w2"):
        body = {"name": name, "capabilities": {"max_concurrency": 2, "labels": ["gpu", EVIL]}, "os_info": EVIL}
        assert api.post("/api/runtime/workers", json=body).status_code == 201
    task = {"prompt": f"Say hello {EVIL}", "agent_slug": f"agent {EVIL}", "context_id": EVIL}
    ids = [api.post(TASKS, json=task).json()["id"] for _ in range(4)]
    for id in ids[:2]:
        assert api.post(f"{TASKS}/{id}/lease", json={}).status_code == 201
    api.post(f"{TASKS}/{ids[0]}/complete", json={"status": "success", "output": f'{{"said": "{EVIL}"}}'})
    api.post(f"{TASKS}/{ids[1]}/complete", json={"status": "error", "error_message": EVIL, "retryable": False})
    return ids


def live(page: Page, state: str) -> None:
    expect(page.locator("#head .live")).to_have_text(state)


# --- For everybody


@pytest.mark.parametrize(("scheme", "width", "language"), LOOKS)
def test_everybody_can_use_every_page(populated, open_page, trouble, scheme, width, language):
    page = open_page("overview", scheme=scheme, width=width, language=language)
    for path in (*PAGES, f"tasks?task={populated[0]}", f"tasks?task={populated[1]}", "workers?worker=w1"):
        page.goto(page.url.partition("#")[0] + f"#/{path}")
        expect(page.locator("main .page h1")).to_be_visible()
        expect(page.locator("main .empty", has_text="…")).to_have_count(0)
        found = Axe().run(page, options=RULES).response["violations"]
        told = [f"{path}: {each['id']} {[node['html'][:200] for node in each['nodes'][:3]]}" for each in found]
        assert not told, "\n".join(told)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.locator("main script, main img").count() == 0
        if SHOTS:
            name = re.sub(r"\W+", "-", path.replace(populated[0], "done").replace(populated[1], "failed"))
            page.screenshot(path=Path(SHOTS) / f"{name}-{language}-{scheme}-{width}.png", full_page=True)


def test_from_the_sign_in_to_a_cancelled_task_by_keyboard(populated, open_page, site):
    page = open_page("tasks?status=queued", signed_in=False)
    page.keyboard.type(site.settings["http.api_key"])
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(2)

    def reach(name: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            if name in page.evaluate(
                "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
            ):
                return
        raise AssertionError(f"nobody reaches {name!r}")

    reach("Say hello")
    page.keyboard.press("Enter")
    expect(page.locator("main header .badge")).to_have_text("queued")
    reach("Cancel task")
    page.keyboard.press("Enter")
    reach("Cancel task")
    page.keyboard.press("Enter")
    expect(page.locator("main header .badge")).to_have_text("cancelled")


# --- In the reader's language

CATALOGUES = """
async (folder) => Object.fromEntries(await Promise.all(
    ["app", "audit", "keys", "membridge", "overview", "runtime", "tasks", "workers"].map(
        async (name) => [name, (await import(`${folder}/strings/${name}.js`)).default])))
"""


PLURALS = {"one", "few", "many", "other"}


def flat(words, prefix: str = "") -> dict[str, str | dict[str, str]]:
    """The texts of a catalogue by their whole names; those that differ by number stay together."""
    texts = {}
    for name, text in words.items():
        if isinstance(text, dict) and not text.keys() <= PLURALS:
            texts |= flat(text, f"{prefix}{name}.")
        else:
            texts[prefix + name] = text
    return texts


def parameters(text) -> set[str]:
    texts = text.values() if isinstance(text, dict) else [text]
    return {name for each in texts for name in re.findall(r"\{(\w+)\}", each)}


def test_every_word_is_there_in_both_languages(open_page):
    folder = next(path for path in load() if path.startswith("/web/")).rpartition("/web/")[2].split("/")[0]
    catalogues = open_page("keys").evaluate(CATALOGUES, f"/web/{folder}")
    source = b"".join(file.content for path, file in load().items() if path.endswith(".js") and "/strings/" not in path)
    # What may be asked for: whole names, and beginnings of those that are put together.
    asked = set(re.findall(r"""\bt\(\s*["`]([\w.-]+)["`]""", source.decode()))
    assert asked
    there = set()
    for name, catalogue in catalogues.items():
        en, uk = flat(catalogue["en"]), flat(catalogue["uk"])
        there |= {f"{name}.{key}" for key in en}
        assert en.keys() == uk.keys(), name
        for key in en:
            assert parameters(en[key]) == parameters(uk[key]), (name, key)
            assert isinstance(en[key], dict) == isinstance(uk[key], dict), (name, key)
            if isinstance(en[key], dict):
                assert en[key].keys() == {"one", "other"}, (name, key)
                assert uk[key].keys() == PLURALS, (name, key)
    assert asked - there == set()
    whole = set(re.findall(r"""["`]([a-z]+\.[\w.-]+)["`]""", source.decode()))
    begun = tuple(re.findall(r"`([a-z]+\.[\w.]*)\$\{", source.decode()))
    assert [key for key in there - whole if not key.startswith(begun)] == []  # words that nobody needs


@pytest.mark.parametrize(("locale", "title"), [("uk-UA", "Ключі"), ("en-GB", "Keys"), ("de", "Keys")])
def test_the_first_language_is_the_browsers(open_page, locale, title):
    expect(open_page("keys", language=locale).locator("h1")).to_have_text(title)


def test_the_language_is_chosen_and_stays(open_page):
    page = open_page("keys")
    page.get_by_label("Language").select_option("uk")
    expect(page.locator("h1")).to_have_text("Ключі")
    expect(page.locator("html")).to_have_attribute("lang", "uk")
    page.reload()
    expect(page.locator("h1")).to_have_text("Ключі")


# --- The address


def test_back_goes_back_and_a_link_leads_there(api, open_page):
    page = open_page("keys")
    page.get_by_role("link", name="Workers", exact=True).click()
    expect(page.locator("h1")).to_have_text("Workers")
    page.go_back()
    expect(page.locator("h1")).to_have_text("Keys")
    for nowhere in ("constructor", "%", "nothing?x=%"):
        expect(open_page(nowhere).locator("h1")).to_have_text("Overview")


# --- Live


def test_back_is_where_one_was(api, open_page):
    api.post(TASKS, json=[{"prompt": f"Task {number}"} for number in range(60)]).raise_for_status()
    page = open_page("tasks")
    link = page.locator("tbody tr").nth(50).get_by_role("link").first
    link.scroll_into_view_if_needed()
    top = page.evaluate("scrollY")
    assert top > 500
    prompt = link.inner_text()
    link.click()
    expect(page.locator("main .facts").first).to_be_visible()
    page.wait_for_function("scrollY === 0")
    page.go_back()
    expect(page.get_by_role("link", name=prompt, exact=True)).to_be_focused()
    assert abs(page.evaluate("scrollY") - top) < 50


def test_back_changes_also_the_field_that_has_the_focus(populated, open_page):
    page = open_page("tasks")
    agent = page.get_by_label("Agent", exact=True)
    agent.fill("nobody")
    agent.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(0)
    expect(agent).to_be_focused()
    page.go_back()
    expect(page.locator("tbody tr")).to_have_count(4)
    expect(agent).to_have_value("")


def test_a_change_made_elsewhere_is_shown_within_a_second(api, open_page):
    page = open_page("tasks")
    live(page, "live")
    took = []
    for number in range(3):
        page.wait_for_timeout(1500)  # so that each is the first change for a while
        began = time.monotonic()
        api.post(TASKS, json={"prompt": f"Task {number}"}).raise_for_status()
        page.get_by_text(f"Task {number}", exact=True).wait_for()
        took.append(time.monotonic() - began)
    print(f"from a change to its display: {sorted(took)[1] * 1000:.0f} ms (median), {max(took) * 1000:.0f} ms")
    assert sorted(took)[1] < 1


def test_a_restart_of_the_daemon_is_noticed_and_survived(open_page, trouble, start_site):
    trouble.expect("ERR_", "503", "504")
    with start_site() as site:
        page = open_page("tasks", site=site)
        live(page, "live")
        site.stop()
        live(page, "reconnecting")
        site.start()
        site.http.post(TASKS, json={"prompt": "Made meanwhile"}).raise_for_status()
        expect(page.get_by_text("Made meanwhile")).to_be_visible()
        live(page, "live")
        page.close()


def test_where_streams_are_blocked_it_works_by_polling(api, open_page, trouble):
    trouble.expect("ERR_FAILED")
    page = open_page("keys")
    page.route("**/api/runtime/events*", lambda route: route.abort())
    page.reload()
    page.get_by_role("link", name="Tasks", exact=True).click()
    api.post(TASKS, json={"prompt": "Seen all the same"}).raise_for_status()
    expect(page.get_by_text("Seen all the same")).to_be_visible()
    expect(page.locator("#head .live")).not_to_have_text("live")


def test_a_stream_that_something_on_the_way_holds_back_is_not_called_live(api, held_back, open_page):
    page = open_page("keys")
    page.goto(f"{held_back}/#/tasks")
    live(page, "by polling")
    api.post(TASKS, json={"prompt": "Seen all the same"}).raise_for_status()
    expect(page.get_by_text("Seen all the same")).to_be_visible()
    page.goto("about:blank")  # or the proxy's end would be an error


def test_without_a_database_that_is_said_at_once_and_so_is_its_return(open_page, trouble, start_site):
    trouble.expect("503")
    with start_site() as site:
        page = open_page("tasks", site=site)
        live(page, "live")
        assert site.ctl("stop", "database").returncode == 0
        expect(page.locator("main .problem")).to_be_visible()  # the net of polling is wider than patience
        assert site.ctl("start", "database").returncode == 0
        expect(page.locator("main .problem")).to_have_count(0)
        page.close()


def test_paused_nothing_moves(api, open_page):
    page = open_page("tasks")
    live(page, "live")
    page.get_by_role("button", name="Pause", exact=True).click()
    live(page, "paused")
    api.post(TASKS, json={"prompt": "Not yet"}).raise_for_status()
    page.wait_for_timeout(1500)
    expect(page.get_by_text("Not yet")).to_have_count(0)
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_text("Not yet")).to_be_visible()


def test_what_was_shown_stays_and_is_called_old_when_the_server_does_not_answer(populated, open_page, trouble):
    trouble.expect("ERR_FAILED")
    page = open_page("tasks")
    expect(page.locator("tbody tr")).to_have_count(4)
    page.route("**/api/runtime/**", lambda route: route.abort())
    expect(page.locator("main .problem")).to_contain_text("The server cannot be reached.", timeout=90_000)
    expect(page.locator("tbody tr")).to_have_count(4)
    assert Axe().run(page, options=RULES).response["violations"] == []
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("main .problem")).to_contain_text("The server cannot be reached.")
    page.unroute("**/api/runtime/**")  # from now on it is tried without a click
    expect(page.locator("main .problem")).to_have_count(0)


def test_what_was_shown_of_another_address_does_not_stay_beside_what_went_wrong(populated, open_page, trouble):
    trouble.expect("500")
    one, other = populated[:2]
    page = open_page(f"tasks?task={one}")
    expect(page.locator("main .page")).to_contain_text(one)
    page.route(f"**/llm-tasks/{other}*", lambda route: route.fulfill(status=500, json={"detail": "broken"}))
    page.goto(f"{page.url.partition('#')[0]}#/tasks?task={other}")
    expect(page.locator("main .problem")).to_contain_text("broken")
    expect(page.locator("main")).not_to_contain_text(one)
    expect(page.locator("main h1")).to_have_text("Tasks")
