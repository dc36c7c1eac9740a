"""The page's session: what a cookie must say to be one, and what a request with one must say of where it comes from."""

import pytest
from test_access import KEY, NAMED, knock, nothing, ring, scope

from bloomd.http import session
from bloomd.http.access import guarded
from bloomd.http.session import begin, key_of, session_in, set_cookie
from bloomd.runtime.keys import digest
from bloomd.settings.model import Http

SECRET = "a-secret-that-signs"
HTTP = Http(api_key=KEY, session_secret=SECRET)
OWN = {"host": "bloom.example", "origin": "http://bloom.example"}


def cookie(key=KEY, *, secret=SECRET):
    return begin(secret, digest(key.encode()), "whoever")[1]


async def test_a_session_is_its_keys():
    keys = await ring(ci=NAMED)
    assert key_of(KEY, HTTP, keys) == (digest(KEY.encode()), "api-key")
    assert key_of(NAMED, HTTP, keys) == (digest(NAMED.encode()), "ci")
    assert key_of("wrong", HTTP, keys) is None
    assert session_in(cookie(), HTTP, keys).actor == "api-key"
    assert session_in(cookie(NAMED), HTTP, keys).actor == "ci"
    assert session_in(cookie(NAMED), HTTP, await ring()) is None
    assert session_in(cookie(), Http(api_key="another-key-of-this", session_secret=SECRET), keys) is None
    assert session_in(cookie(), Http(api_key=KEY, session_secret="another"), keys) is None
    assert session_in(cookie(), Http(api_key=KEY), keys) is None


async def test_nothing_of_it_can_be_changed():
    keys, value = await ring(), cookie()
    id, expires, mark, signature = value.split(".")
    for forged in (
        "", ".", "...", value[:-1], value + "A", f"{id}.{int(expires) + 1}.{mark}.{signature}", f"x{value}",
        f"{id}.{expires}.{mark}.", "\u00e9." + value, "A" * 9000, f"{id}.{expires}.{mark}.\xff",
        value.rpartition(".")[0],
    ):  # fmt: skip
        assert session_in(forged, HTTP, keys) is None, forged
    assert KEY not in value
    assert digest(KEY.encode()) not in value


async def test_it_ends(monkeypatch):
    keys, value = await ring(), cookie()
    begun = session_in(value, HTTP, keys)
    monkeypatch.setattr(session, "_now_ms", lambda: begun.expires_at - 1)
    assert session_in(value, HTTP, keys) == begun
    monkeypatch.setattr(session, "_now_ms", lambda: begun.expires_at)
    assert session_in(value, HTTP, keys) is None


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {}, 0),
        ("GET", {"sec_fetch_site": "same-origin"}, 0),
        ("GET", {"sec_fetch_site": "none"}, 0),
        ("GET", {"sec_fetch_site": "cross-site"}, 401),
        ("GET", {"sec_fetch_site": "same-site"}, 401),
        ("POST", OWN, 0),
        ("DELETE", OWN, 0),
        ("POST", {"host": "bloom.example"}, 403),
        ("POST", {**OWN, "origin": "null"}, 403),
        ("POST", {"origin": "null"}, 403),
        ("POST", {**OWN, "origin": "http://bloom.example:81"}, 403),
        ("POST", {**OWN, "origin": "https://bloom.example"}, 403),
        ("POST", {**OWN, "origin": "http://evil.example"}, 403),
        ("POST", {**OWN, "origin": "bloom.example"}, 403),
    ],
)
async def test_where_a_request_with_it_comes_from(method, headers, status):
    door = guarded(nothing, lambda: HTTP, await ring())
    assert await knock(door, method=method, cookie=f"a=b; bloomd={cookie()}; c=d", **headers) == status


@pytest.mark.parametrize(
    ("headers", "secure"),
    [
        ({"x_forwarded_proto": "https"}, True),
        ({"x_forwarded_proto": "http"}, False),
        ({}, False),
    ],
)
async def test_over_tls_it_has_another_name_and_no_other_counts(headers, secure):
    door = guarded(nothing, lambda: HTTP, await ring())
    for name, is_its in (("bloomd", not secure), ("__Host-bloomd", secure)):
        assert await knock(door, cookie=f"{name}={cookie()}", **headers) == (0 if is_its else 401)
    secure = {"method": "POST", "cookie": f"__Host-bloomd={cookie()}", "x_forwarded_proto": "https"}
    assert await knock(door, **secure, **OWN) == 403  # a page without TLS
    assert await knock(door, **secure, **{**OWN, "origin": "https://bloom.example"}) == 0


async def test_of_several_cookie_headers_all_are_read():
    door = guarded(nothing, lambda: HTTP, await ring())
    asked = scope(cookie="a=b")
    asked["headers"].append((b"cookie", f"bloomd={cookie()}".encode()))
    assert await knock(door, asked) == 0


async def test_a_session_uses_its_key():
    keys = await ring(ci=NAMED, other="bloom_" + "o" * 43)
    used = []

    async def note_uses(_, seconds_ago):
        used.extend(seconds_ago)

    keys._keys._note_uses = note_uses
    door = guarded(nothing, lambda: HTTP, keys)
    assert await knock(door, cookie=f"bloomd={cookie()}") == 0
    await keys._write_uses()
    assert used == []
    assert await knock(door, cookie=f"bloomd={cookie(NAMED)}") == 0
    await keys._write_uses()
    assert used == [digest(NAMED.encode())]


async def test_a_stranger_cannot_claim_tls():
    door = guarded(nothing, lambda: HTTP, await ring())
    claimed = {"cookie": f"__Host-bloomd={cookie()}", "x_forwarded_proto": "https"}
    assert await knock(door, client=("9.9.9.9", 1), **claimed) == 401


def test_the_cookie_is_for_no_script_and_no_other_site():
    assert set_cookie("v", seconds=9, secure=False) == "bloomd=v; Path=/; Max-Age=9; HttpOnly; SameSite=Lax"
    secure = set_cookie("v", seconds=9, secure=True)
    assert secure == "__Host-bloomd=v; Path=/; Max-Age=9; HttpOnly; SameSite=Lax; Secure"
