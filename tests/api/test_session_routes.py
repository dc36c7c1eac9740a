"""The page's sign-in over HTTP: how little a stranger can make it read."""

import socket

import httpx
import pytest


@pytest.fixture
def stranger(daemon, api):
    """Somebody without a key, whose attempts are nobody else's."""
    with httpx.Client(base_url=daemon.url, headers={"X-Forwarded-For": "198.51.100.20"}, trust_env=False) as stranger:
        yield stranger


def sign_in(stranger, content, **headers):
    headers = {"Content-Type": "application/json", **headers}
    return stranger.post("/api/runtime/session", content=content, headers=headers).status_code


def test_what_is_no_key_counts_and_over_the_limit_nothing_is_read(daemon, stranger):
    assert [sign_in(stranger, body) for body in (b"{", b"[]", b'{"key": ""}', b"x", b'{"key": "x"}') * 2] == [
        400, 400, 400, 400, 401,
    ] * 2  # fmt: skip
    assert sign_in(stranger, b"{") == 429
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as connection:
        connection.sendall(
            b"POST /api/runtime/session HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 198.51.100.20\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 429 ")


def test_a_stranger_sends_no_more_than_a_key_or_a_code(daemon, api, stranger):
    large = b'{"key": "' + b"x" * 8192 + b'"}'
    for path in ("session", "enrolments/exchange", "test-connection"):
        answer = stranger.post(
            f"/api/runtime/{path}",
            content=large,
            headers={"Content-Type": "application/json", "X-Forwarded-For": "198.51.100.21"},
        )
        assert (answer.status_code, "8192 bytes" in answer.json()["error"]) == (413, True), path
    in_pieces = iter([large[:4096], large[4096:]])
    assert sign_in(stranger, in_pieces, **{"X-Forwarded-For": "198.51.100.21"}) == 413
    assert api.post("/api/runtime/llm-tasks", json={"prompt": "x" * 9000}).status_code == 201
