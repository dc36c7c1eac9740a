"""What the page shows of contents that are in an object store, and of that store."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bloomd_process import Bloomd
from minio import Minio
from playwright.sync_api import Page, Route, expect
from s3_server import ACCESS, SECRET, S3Server, s3_server
from servers import eventually
from tools import require

TASKS = "/api/runtime/llm-tasks"
STATUS = "**/api/runtime/status"
CALM = {"to_move": 0, "to_move_bytes": 0, "to_remove": 0, "damaged": []}
DRAWN = 16 * 1024
INLINE_BELOW = 4096  # of the settings, unless told otherwise
PICTURE = b"\x89PNG" + bytes(range(256)) * 40


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(require("rclone"), tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def stored(start_site: Any, s3: S3Server) -> Iterator[Bloomd]:
    """A daemon with an object store."""
    store = {"endpoint": s3.endpoint, "bucket": "artifacts", "access_key": ACCESS, "secret_key": SECRET}
    with start_site(**{f"minio__{name}": value for name, value in store.items()}) as bloomd:
        yield bloomd


def complete(site: Bloomd, output: str | bytes, content: bytes | None = None) -> dict[str, Any]:
    """A task that is completed; its result's artifact, once all its contents are in the object store.

    An output of bytes is uploaded, as our worker does with a long one. `content`: another artifact, a picture.
    """
    capabilities = {"claude_cli": True, "max_concurrency": 32}
    site.http.post("/api/runtime/workers", json={"name": "w1", "capabilities": capabilities})
    id = site.http.post(TASKS, json={"prompt": "p"}).json()["id"]
    lease = site.http.post(f"{TASKS}/{id}/lease", json={"worker_id": "w1"}).raise_for_status().json()["lease"]["id"]

    def upload(name: str, content: bytes) -> str:
        path = f"/api/runtime/leases/{lease}/artifacts/{name}"
        kind = {"content-type": "image/png"} if name == "picture" else {}
        return site.http.put(path, content=content, headers=kind).raise_for_status().json()["id"]

    if content is not None:
        upload("picture", content)
    said = {"output": output} if isinstance(output, str) else {"artifact_id": upload("output", output)}
    done = site.http.post(f"{TASKS}/{id}/complete", json={"status": "success", **said}).raise_for_status().json()

    def are_moved() -> bool:
        found = site.http.get("/api/runtime/artifacts", params={"task_id": id}).json()
        return all(each["url"] or each["size"] < INLINE_BELOW for each in found)

    eventually(are_moved)
    return done["artifact"]


def result(page: Page) -> Any:
    return page.locator(".card", has=page.get_by_role("heading", name="Result", exact=True))


def link(place: Any) -> Any:
    return place.get_by_role("link", name="Download")


def downloaded(page: Page, link: Any) -> bytes:
    with page.expect_download() as told:
        link.click()
    return told.value.path().read_bytes()


def object_of(s3: S3Server, artifact: dict[str, Any]) -> Path:
    [file] = (s3.directory / "artifacts" / "artifacts").glob(f"*/{artifact['id']}")
    return file


@pytest.mark.parametrize(
    ("way", "size"), [("told", 20 << 10), ("told", 2 << 20), ("uploaded", 2 << 20)], ids=["20 KiB", "2 MiB", "uploaded"]
)
def test_a_large_output_is_shown_in_part_and_downloaded_whole(stored, open_page, way, size):
    output = "Київ\n as it is said\n" * (size // 24)
    artifact = complete(stored, output if way == "told" else output.encode())
    page = open_page(f"tasks?task={artifact['task_id']}", site=stored)
    expect(result(page)).to_contain_text("This is only its beginning.")
    drawn = result(page).locator("pre").text_content()
    assert DRAWN / 2 < len(drawn) <= DRAWN
    assert output.startswith(drawn)
    expect(result(page).get_by_role("button", name="Copy")).to_have_count(int(size < 1 << 18))
    assert downloaded(page, link(result(page))) == output.encode()


def test_a_small_output_is_shown_whole(stored, open_page):
    for output in ("short", b'{"b": [2]}', "пів " * 2000):
        artifact = complete(stored, output)
        page = open_page(f"tasks?task={artifact['task_id']}", site=stored)
        said = output if isinstance(output, str) else output.decode()
        if said.startswith("{"):
            page.get_by_role("button", name="As it came").click()
        expect(result(page).locator("pre")).to_have_text(said)
        expect(result(page)).not_to_contain_text("beginning")


def test_what_is_no_text_is_not_drawn_but_downloaded(stored, open_page):
    artifact = complete(stored, PICTURE, PICTURE[:-1])
    page = open_page(f"tasks?task={artifact['task_id']}", site=stored)
    expect(result(page)).to_contain_text("It is no text (10 kB).")
    expect(result(page).locator("pre")).to_have_count(0)
    assert downloaded(page, link(result(page))) == PICTURE
    assert downloaded(page, page.get_by_role("link", name="Download: picture")) == PICTURE[:-1]


def test_who_had_nothing_to_say_has_no_output(stored, open_page):
    task = stored.http.post(TASKS, json={"prompt": "p"}).json()["id"]
    stored.http.post(f"{TASKS}/{task}/lease", json={}).raise_for_status()
    stored.http.post(f"{TASKS}/{task}/complete", json={"status": "success"}).raise_for_status()
    page = open_page(f"tasks?task={task}", site=stored)
    expect(result(page)).to_contain_text("success")
    expect(page.get_by_role("region", name="Artifacts").get_by_role("row")).to_have_count(2)
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(link(page)).to_have_count(0)


def test_an_object_that_is_gone_is_said(stored, s3, open_page, trouble):
    trouble.expect("404")
    artifact = complete(stored, "x" * 100_000)
    client = Minio(s3.endpoint, access_key=ACCESS, secret_key=SECRET, secure=False)
    client.remove_object("artifacts", str(object_of(s3, artifact).relative_to(s3.directory / "artifacts")))
    page = open_page(f"tasks?task={artifact['task_id']}", site=stored, language="uk")
    expect(page.get_by_role("alert")).to_contain_text("Вміст недоступний.")
    expect(page.get_by_role("alert")).to_contain_text("not in the object store any more")
    expect(page.get_by_role("alert")).to_contain_text("bloomd doctor --objects")
    page.get_by_role("link", name="Завантажити").click()
    expect(page.locator("#toasts .bad")).to_contain_text("Вміст недоступний.")
    expect(page.locator("#toasts .bad")).to_contain_text("not in the object store any more")


def test_content_that_is_damaged_is_said(stored, s3, open_page, trouble):
    trouble.expect("500")
    artifact = complete(stored, "x" * 10_000)
    page = open_page(f"tasks?task={artifact['task_id']}", site=stored)
    object_of(s3, artifact).write_bytes(b"y" * 10_000)
    link(page).click()
    expect(page.locator("#toasts .bad")).to_contain_text(
        "The content cannot be had. The content of this artifact is damaged"
    )
    page = open_page("runtime", site=stored)
    expect(page.get_by_role("alert")).to_contain_text(re.compile("damaged contents?"))
    page.get_by_role("alert").get_by_role("link", name=artifact["id"]).click()
    expect(page.locator("tbody tr")).to_contain_text("artifact.damaged")
    expect(page.locator("tbody tr")).to_contain_text("found damaged")


def test_a_store_that_is_away_is_said_and_asked_again(stored, s3, open_page, trouble):
    trouble.expect("503")
    artifact = complete(stored, "y" * 10_000)
    s3.kill()
    try:
        page = open_page(f"tasks?task={artifact['task_id']}", site=stored)
        expect(page.get_by_role("alert")).to_contain_text("The content cannot be had.")
        expect(page.get_by_role("alert")).to_contain_text(f"the object store at {s3.endpoint}")
        link(page).click()
        expect(page.locator("#toasts .bad")).to_contain_text("The content cannot be had.")
    finally:
        s3.start()
    eventually(lambda: stored.http.get(f"/api/runtime/artifacts/{artifact['id']}/content").status_code == 200)
    page.get_by_role("alert").get_by_role("button", name="Try again").click()
    expect(result(page).locator("pre")).to_have_text("y" * 10_000)
    assert downloaded(page, link(page)) == b"y" * 10_000


def test_a_download_says_when_the_session_is_over(stored, open_page, trouble):
    trouble.expect("401")
    artifact = complete(stored, "z" * 10_000)
    page = open_page(f"tasks?task={artifact['task_id']}", site=stored)
    expect(result(page).locator("pre")).to_be_visible()
    over = {"type": "urn:problem-type:bloomd:unauthorized", "status": 401, "detail": "Send the API key"}
    page.route("**/content", lambda route: route.fulfill(status=401, json=over))
    link(page).click()
    expect(page.get_by_label("API key")).to_be_visible()


def with_status(page: Page, **changes: Any) -> None:
    def answer(route: Route) -> None:
        told = route.fetch()
        route.fulfill(response=told, json=told.json() | changes)

    page.route(STATUS, answer)
    page.reload()


def row(page: Page, title: str) -> Any:
    return page.locator("dt", has_text=title).locator("+ dd")


def test_the_store_is_shown_on_both_pages(stored, open_page):
    for path in ("runtime", ""):
        expect(row(open_page(path, site=stored), "Object store")).to_contain_text("all moved")


def test_damaged_contents_are_not_overlooked(stored, open_page):
    page = open_page("runtime", site=stored)
    with_status(page, objects=CALM | {"to_move": 2, "to_move_bytes": 3 << 20, "damaged": ["a1", "a2", "a3", "a4"]})
    expect(row(page, "Object store")).to_have_text("2 contents to move (3 MB), 4 damaged contents")
    expect(page.get_by_role("alert")).to_contain_text("a1, a2, a3 and 1 more")
    page = open_page("", site=stored, language="uk")
    with_status(page, objects=CALM | {"to_remove": 5, "damaged": ["a1"]})
    expect(row(page, "Об'єктне сховище")).to_have_text("прибрати 5 об'єктів, пошкоджено 1 артефакт")
    expect(page.get_by_role("alert")).to_contain_text("пошкоджено 1 артефакт")


def test_the_backup_is_shown(api, open_page):
    backup = {"next": 4e9, "since": None, "verified_age_seconds": None, "missing": 1, "error": "no room"}
    page = open_page("runtime")
    expect(page.get_by_role("heading", name="Object store and backup")).to_have_count(0)
    with_status(page, backup=backup)
    expect(row(page, "Backup")).to_contain_text("never verified, next in ")
    expect(row(page, "Backup")).to_contain_text("1 object missing or damaged, no room")
    page = open_page("")
    with_status(page, backup=backup | {"verified_age_seconds": 7200, "missing": 0, "error": None})
    expect(row(page, "Backup")).to_contain_text("verified 2 hr. ago, next in ")
