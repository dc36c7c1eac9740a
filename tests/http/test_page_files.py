"""The page's files: what they are served with, how they are cached, and how much there is of them."""

import re
from importlib.resources import files

import pytest

from bloomd.http.page import load, with_page
from bloomd.http.problems import Problem

PAGE = load()


async def behind(scope, receive, send):
    await send({"type": "http.response.start", "status": 299, "headers": []})


async def get(path, method="GET", **headers):
    """The status, headers and body of an answer."""
    said = {"body": b""}

    async def send(message):
        said.update(message)

    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await with_page(behind, PAGE)({"path": path, "method": method, "headers": encoded}, None, send)
    return said["status"], {name.decode(): value.decode() for name, value in said["headers"]}, said["body"]


async def test_the_first_file_names_all_modules_and_is_asked_for_each_time():
    status, headers, body = await get("/")
    assert (status, headers["cache-control"]) == (200, "no-cache")
    assert headers["content-type"] == "text/html; charset=utf-8"
    named = set(re.findall(r'(?:href|src)="(/[^"]*)"', body.decode()))
    assert named == {path for path in PAGE if path != "/"}
    assert (await get("/", if_none_match=headers["etag"]))[::2] == (304, b"")
    assert (await get("/", if_none_match='"another"'))[0] == 200


async def test_the_others_are_kept_for_good():
    for path in PAGE.keys() - {"/"}:
        status, headers, body = await get(path)
        assert (status, len(body)) == (200, int(headers["content-length"]))
        assert headers["cache-control"] == "public, max-age=31536000, immutable"


async def test_nothing_is_run_that_is_not_ours():
    for path in PAGE:
        policy = (await get(path))[1]["content-security-policy"]
        assert "unsafe" not in policy
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "frame-ancestors 'none'" in policy
    for file in PAGE.values():
        assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg|127\.0\.0\.1|10\.0\.0\.7|git\.example)", file.content)
        assert not re.search(rb"innerHTML|insertAdjacentHTML|document\.write|\beval\(|<style|\sstyle=", file.content)


async def test_it_is_only_read():
    with pytest.raises(Problem) as refused:
        await get("/", method="POST")
    assert (refused.value.status, refused.value.headers["allow"]) == (405, "GET, HEAD")


async def test_all_else_is_left_to_the_application():
    [digest] = {path.split("/")[2] for path in PAGE if path != "/"}
    for path in (
        "/web",
        f"/web/{digest}",
        f"/web/{digest}/",
        f"/web/{digest}/../app.py",
        "/web/0/app.js",
        "//",
        "/index.html",
    ):
        assert (await get(path))[0] == 299


def test_comments_stay_at_home_and_lines_where_they_are():
    [app] = [file.content.decode() for path, file in PAGE.items() if path.count("/") == 3 and path.endswith("/app.js")]
    source = (files("bloomd") / "web" / "app.js").read_text()
    assert [line for line in app.split("\n") if line.lstrip().startswith("//")] == []
    kept = [(number, line) for number, line in enumerate(app.split("\n")) if line]
    assert kept
    assert set(kept) <= set(enumerate(source.split("\n")))


def test_it_weighs_less_than_200_kb():
    assert sum(len(file.content) for file in PAGE.values()) < 200_000
