"""What is blotted out of log lines and bug reports, and what is left as it is."""

import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomd.redaction import Redaction, cut

SECRET = "hunter2-X9"
NAMED = f"bloom_{'k' * 43}"
TOKEN = f"bloomw_{'t' * 43}"
CODE = f"bloome_{'e' * 43}"
COOKIE = f"{'i' * 22}.1764122400000.{'m' * 22}.{'s' * 43}"


@pytest.mark.parametrize(
    "secret",
    ["plain-secret", "a b/c d", 'quo"ted', "back\\slash", "a/b@c:d?e#f%", "it's so", "ключ-сервера", '"\\"\\ "x'],
)
@pytest.mark.parametrize(
    "spelled",
    [
        lambda secret: secret,
        lambda secret: json.dumps({"error": secret}),
        lambda secret: json.dumps({"error": secret}, ensure_ascii=False),
        lambda secret: json.dumps({"params": json.dumps({"name": secret})}),
        lambda secret: json.dumps({"error": repr(secret)}),
        lambda secret: f"error: {secret!r}",
        lambda secret: quote(secret, safe=""),
        lambda secret: quote_plus(secret),
    ],
)
def test_a_known_secret_is_found_in_every_spelling(secret, spelled):
    redaction = Redaction()
    redaction.add([secret])
    text = f"before {spelled(secret)} after"
    clean = redaction(text)
    assert spelled(secret) not in clean
    assert "****" in clean
    assert clean.startswith("before ")
    assert clean.endswith(" after")


def test_a_secret_inside_another_leaves_nothing_of_it():
    redaction = Redaction()
    redaction.add(["secret", "my-secret-is-long"])
    assert redaction("x my-secret-is-long y secret") == "x **** y ****"


def test_one_that_is_too_short_would_blot_out_everything():
    redaction = Redaction()
    redaction.add(["a", "", "12345"])
    assert redaction("a task has 12345 words") == "a task has 12345 words"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"GET /api/{NAMED}/x", "GET /api/****/x"),
        (f"{TOKEN} {CODE}", "**** ****"),
        (f"bloomd={COOKIE}; Path=/", "bloomd=****; Path=/"),
        (f"postgresql://bloom:{SECRET}@db:5432/runtime?x=1", "postgresql://bloom:****@db:5432/runtime?x=1"),
        (f"postgresql://bloom:p/{SECRET}@{SECRET}@db/runtime", "postgresql://bloom:****@db/runtime"),
        (f"https://:{SECRET}@minio failed", "https://:****@minio failed"),
        (f"host=db password={SECRET} user=bloom", "host=db password=**** user=bloom"),
        (f"host=db password='a \\' {SECRET}' user=bloom", "host=db password='****' user=bloom"),
        (f"X-Runtime-API-Key: {SECRET}", "X-Runtime-API-Key: ****"),
        (f"Authorization: Basic {SECRET}", "Authorization: ****"),
        (f"'Bearer {SECRET}'", "'Bearer ****'"),
        (f"Cookie: a={SECRET}; b={SECRET}", "Cookie: ****"),
        (
            f"[(b'x-runtime-api-key', b'{SECRET}'), (b'host', b'h')]",
            "[(b'x-runtime-api-key', b'****'), (b'host', b'h')]",
        ),
        (f"RUNTIME_API_KEY={SECRET}", "RUNTIME_API_KEY=****"),
        (f'{{"api_key": "{SECRET}", "n": 1}}', '{"api_key": "****", "n": 1}'),
        (f'{{"p": "{{\\"token\\": \\"{SECRET}\\"}}"}}', '{"p": "{\\"token\\": \\"****\\"}"}'),
        (f'"secret": "a\\"{SECRET}", "n": 1', '"secret": "****", "n": 1'),
        ("api_key: letmein\nx", "api_key: ****\nx"),
        ("password: hunter two", "password: **** two"),
        ("  password: hunter, x", "  password: **** x"),
        ("the token: abcdef", "the token: ****"),
        ("the api_key: abcdef ghij", "the api_key: **** ghij"),
        (f"with sk-ant-api03-{'k' * 40}_x-y ended", "with **** ended"),
        (f"https://s3/x?X-Amz-Credential={SECRET}", "https://s3/x?X-Amz-Credential=****"),
        (f"https://s3/x?X-Amz-Signature={SECRET}", "https://s3/x?X-Amz-Signature=****"),
        (f"GET /x?key={SECRET}", "GET /x?key=****"),
        (f"accessKey={SECRET} secretKey={SECRET}", "accessKey=**** secretKey=****"),
        (f"adminKey: {SECRET}", "adminKey: ****"),
        (f"Pwd={SECRET}", "Pwd=****"),
        ("'basic Zm9vOmJhcg=='", "'basic ****'"),
        ("jwt eyJhbGciOiJI.eyJzdWIi.SflKx-w_c, x", "jwt ****, x"),
        (f"curl -s -u 'me:{SECRET}' http://h", "curl -s -u 'me:****' http://h"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE+/=\nabc\n-----END RSA PRIVATE KEY-----\nx",
            "-----BEGIN RSA PRIVATE KEY-----****-----END RSA PRIVATE KEY-----\nx",
        ),
        ('"-----BEGIN PRIVATE KEY-----\\nMIIE", 1', '"-----BEGIN PRIVATE KEY-----****", 1'),
        (f'{{"event": "x\\npassword={SECRET}\\nTraceback"}}', '{"event": "x\\npassword=****\\nTraceback"}'),
    ],
)
def test_what_has_the_form_of_a_secret_is_none_of_anybodys_business(text, clean):
    assert Redaction()(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "the server wants a password: put one into the database URL, or into ~/.pgpass",
        "basic authentication of task-0123456789abcdef0123456789",
        "correct the user and the password in the database URL",
        '{"event": "request", "actor": "api-key", "request_id": "1ae2e4f02ba30214b1510216d2ac844d"}',
        '{"token": null, "keys": 3, "api_key": false}',
        "http.api_key_file is /etc/bloomd/api.key",
        "http://127.0.0.1:5000/a/b and worker@host",
        "timestamp=2026-11-26T02:31:21.622585Z event=request path=/ready client=127.0.0.1 actor=api-key",
        "bloom_runtime, bloomd, bloom_now_ms()",
    ],
)
def test_what_is_no_secret_is_left(text):
    assert Redaction()(text) == text


@given(st.text(min_size=6, max_size=30), st.text(), st.text())
def test_no_text_around_it_saves_a_known_secret(secret, before, after):
    redaction = Redaction()
    redaction.add([secret])
    clean = redaction(f"{before}\x00{secret}\x00{after}")
    assert f"\x00{secret}\x00" not in clean


def test_only_the_texts_of_a_value_are_redacted_and_long_ones_cut():
    redaction = Redaction()
    redaction.add(["status"])
    value = {"status": "the status", "list": ["x" * 30, 7, None, True, 1.5, {"a": f"token={SECRET}"}]}
    assert redaction.within(value, 20) == {
        "status": "the ****",
        "list": ["x" * 20 + "… (10 more characters)", 7, None, True, 1.5, {"a": "token=****"}],
    }


def test_cut_leaves_what_fits():
    assert cut("12345", 5) == "12345"
