"""Showing and comparing settings without giving a secret away."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomd.settings import SECRETS, SettingsError, changed, describe, load, masked, secrets, sections
from bloomd.settings.display import shown
from bloomd.settings.keys import KEYS


@pytest.mark.parametrize(
    ("secret", "mask"),
    [("", "****"), ("a" * 11, "****"), ("abcd1234efgh", "abcd****efgh"), ("0123456789abcdef", "0123****cdef")],
)
def test_the_mask(secret, mask):
    assert masked(secret) == mask


@pytest.mark.parametrize(
    ("url", "display", "hidden"),
    [
        (
            "postgresql://u:p%40ss@h:5432/d?sslmode=require",
            "postgresql://u:****@h:5432/d?sslmode=require",
            ["p%40ss", "p@ss"],
        ),
        ("postgres://h1:1,h2:2/d?password=s3cret", "postgresql://:****@h1:1,h2:2/d", ["s3cret"]),
        ("postgresql://u@%2Frun%2Fpg/d", "postgresql://u@%2Frun%2Fpg/d", []),
        ("postgresql://[::1]:5/d?sslpassword=s3cret", "postgresql://[::1]:5/d?sslpassword=****", ["s3cret"]),
        ("host=/run/pg password='s 3'", "password=**** host=/run/pg", ["s%203", "s 3"]),
        ("postgresql://u:%41bc@h", "postgresql://u:****@h", ["%41bc", "Abc"]),
    ],
)
def test_database_urls(url, display, hidden):
    loaded = load(None, environ={"DATABASE_URL": url})
    assert shown("database.url", url) == display
    assert secrets(loaded.settings) == hidden


def test_every_key_is_described(place):
    loaded = place.load("http:\n  api_key: 0123456789abcdef\n  drain_seconds: 2\n", {"PORT": "7000"})
    described = {setting.key: msgspec.structs.astuple(setting)[1:] for setting in describe(loaded)}
    assert list(described) == list(KEYS)
    assert described["http.api_key"] == ("****", "file", f"{place.path}:2", False)
    assert described["http.bind"] == ((":7000",), "environment", "PORT", False)
    assert described["log.level"] == ("info", "default", None, True)


def test_only_membridges_admin_key_shows_a_part():
    secret = "0123456789abcdef"
    shows = {key: shown(key, secret) for key in SECRETS if key != "database.url"}
    assert shows == dict.fromkeys(shows, "****") | {"membridge.admin_key": "0123****cdef"}


def test_changes(place):
    old = place.load("http: {api_key: old}\n").settings
    new = place.load("http: {api_key: new}\nlog: {level: debug}\n").settings
    changes = changed(old, new)
    assert [msgspec.structs.astuple(change) for change in changes] == [
        ("http.api_key", "****", "****"),
        ("log.level", "info", "debug"),
    ]
    assert sections(changes) == {"http", "log"}
    assert changed(old, old) == []


def test_where_a_secret_was_read_is_no_change_of_a_section(place):
    place.write("k", "key")
    place.write("", "runtime.env")
    before = place.load("http: {api_key: k}\n").settings
    after = place.load("env_file: runtime.env\nhttp: {api_key_file: key}\n").settings
    changes = changed(before, after)
    assert [change.key for change in changes] == ["env_file", "http.api_key_file"]
    assert sections(changes) == frozenset()


# Long enough that the mask shows a part only, and with a head that no text of ours has.
a_secret = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=9, max_size=40).map("Zq9{}".format)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(SECRETS), a_secret, min_size=1),
    st.sampled_from(["plain", "double", "alias", "nokey", "list", "url"]),
)
def test_no_secret_is_ever_shown(scratch, told, style):
    lines = []
    for section in sorted({name.partition(".")[0] for name in told}):
        lines.append(f"{section}:")
        for name in sorted(name for name in told if name.startswith(f"{section}.")):
            key, secret = name.partition(".")[2], told[name]
            if style == "url":
                secret = f"postgresql://u:{secret}@h/d"
            escaped = secret.replace("\\", "\\\\").replace('"', '\\"')
            forms = {"plain": f" {secret}", "alias": f" *{secret}", "list": f" [{secret}]", "nokey": secret}
            lines.append(f"  {key}:" + forms.get(style, f' "{escaped}"'))
    scratch.write("\n".join(lines))
    try:
        loaded = scratch.load()
    except SettingsError as error:
        output = f"{error} {error.problems!r}"
    else:
        changes = changed(load(None, environ={}).settings, loaded.settings)
        output = f"{describe(loaded)} {loaded!r} {changes} {loaded.warnings}"
    assert not [secret for secret in told.values() if secret in output]
