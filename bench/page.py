"""The page in Chromium: its weight, how soon it is there, how soon it shows a change, and what it costs when idle."""

import time

import httpx
from bloomd_process import KEY, Bloomd
from playwright.sync_api import Page, sync_playwright
from tools import require

from bench.measure import Row, spread
from bench.rig import rig
from bloomd.http.page import load

RUNS = 10
IDLE_SECONDS = 60.0
# Some hours' worth of a busy queue.
EVENTS = 20_000

FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
HEAP = "performance.memory.usedJSHeapSize"


def measure() -> list[Row]:
    files = load()
    rows: list[Row] = [{"what": "weight, uncompressed", "kB": sum(len(file.content) for file in files.values()) / 1000}]
    with rig() as (_, bloomd), sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=require("chromium"), args=["--no-sandbox", "--enable-precise-memory-info"]
        )
        rows.append(
            {"what": "first paint, nothing cached", **spread([_first_paint(browser, bloomd) for _ in range(RUNS)])}
        )
        page = _open(browser, bloomd)
        rows.append(
            {
                "what": "a change made elsewhere, to its display",
                **spread([_change(page, bloomd, n) for n in range(RUNS)]),
            }
        )
        page.goto(f"{bloomd.url}/#/overview")
        page.wait_for_selector("main .page h1")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(IDLE_SECONDS * 1000)
        rows.append({"what": "the overview, idle", "requests per min": len(asked) * 60 / IDLE_SECONDS})
        before = page.evaluate(HEAP) / 1e6
        for _ in range(EVENTS // 500):
            bloomd.http.post("/api/runtime/llm-tasks", json=[{"prompt": "x"}] * 500).raise_for_status()
        page.wait_for_timeout(5000)
        page.request_gc()
        rows.append(
            {"what": f"heap, before and after {EVENTS} events", "MB": before, "MB after": page.evaluate(HEAP) / 1e6}
        )
        browser.close()
    return rows


def _open(browser, bloomd: Bloomd) -> Page:
    with httpx.Client(base_url=bloomd.url) as client:
        cookie = client.post("/api/runtime/session", json={"key": KEY}).cookies["bloomd"]
    context = browser.new_context()
    context.add_cookies([{"name": "bloomd", "value": cookie, "url": bloomd.url}])
    page = context.new_page()
    page.goto(f"{bloomd.url}/#/tasks")
    page.wait_for_selector("main .page h1")
    return page


def _first_paint(browser, bloomd: Bloomd) -> float:
    page = _open(browser, bloomd)
    seconds = page.evaluate(FIRST_PAINT) / 1000
    page.context.close()
    return seconds


def _change(page: Page, bloomd: Bloomd, number: int) -> float:
    time.sleep(2.5 + number / 10)
    began = time.monotonic()
    bloomd.http.post("/api/runtime/llm-tasks", json={"prompt": f"Change {number}"}).raise_for_status()
    page.get_by_text(f"Change {number}", exact=True).wait_for()
    return time.monotonic() - began
