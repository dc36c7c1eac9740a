"""What the database says about Membridge, and to whom the admin key may go."""

import pytest

from bloomd.settings import load

A, B, C = "http://a", "http://b:8000", "https://c"


@pytest.mark.parametrize(
    ("told", "stored", "url", "key"),
    [
        # (URL and key of the environment), rows of the database → what counts
        ((A, "env"), {}, A, "env"),
        ((None, "env"), {}, None, "env"),
        ((A, "env"), {"membridge_server_url": B}, B, None),
        ((A, "env"), {"membridge_server_url": A + ":80/path/"}, A + ":80/path", "env"),
        ((A, "env"), {"membridge_server_url": B, "admin_key": "db"}, B, "db"),
        ((A, "env"), {"admin_key": "db"}, A, "db"),
        ((A, "env"), {"admin_key": "db", "admin_key_origin": A}, A, "db"),
        ((A, "env"), {"admin_key": "db", "admin_key_origin": B}, A, "env"),
        ((A, None), {"admin_key": "db", "admin_key_origin": B}, A, None),
        ((A, "env"), {"membridge_server_url": B, "admin_key": "db", "admin_key_origin": B}, B, "db"),
        ((A, "env"), {"membridge_server_url": B, "admin_key": "db", "admin_key_origin": A}, B, None),
        ((A, "env"), {"membridge_server_url": A, "admin_key": "db", "admin_key_origin": C}, A, "env"),
        ((None, "env"), {"membridge_server_url": B}, B, None),
        ((None, None), {"membridge_server_url": B, "admin_key": "db"}, B, "db"),
        ((A, "env"), {"membridge_server_url": "", "admin_key": ""}, A, "env"),
        # rows that cannot be used
        ((A, "env"), {"membridge_server_url": "http://u:s3cret@b"}, A, "env"),
        ((A, "env"), {"membridge_server_url": "ftp://b", "admin_key": "db"}, A, "env"),
        ((A, "env"), {"admin_key": "ключ"}, A, "env"),
    ],
)
def test_the_key_goes_where_it_was_given_for(told, stored, url, key):
    names = ("MEMBRIDGE_SERVER_URL", "MEMBRIDGE_ADMIN_KEY")
    environ = {name: value for name, value in zip(names, told, strict=True) if value}
    loaded = load(None, environ={**environ, "RUNTIME_API_KEY": "k"}, stored=stored)
    membridge = loaded.settings.membridge
    assert (membridge.server_url, membridge.admin_key) == (url, key)
    assert loaded.sources["membridge.admin_key"].kind == {"env": "environment", "db": "database"}.get(
        key or "", "default"
    )
    usable = key is not None and not any(value in ("ключ", "ftp://b", "http://u:s3cret@b") for value in stored.values())
    assert bool(loaded.warnings) is not usable
    assert not [text for text in loaded.warnings if "s3cret" in text or "env" in text.split() or "db" in text.split()]


def test_other_rows_later_read_nothing_again(place):
    place.write("of the file", "key")
    loaded = place.load(f"membridge: {{server_url: '{A}', admin_key_file: key}}")
    assert loaded.settings.membridge.admin_key == "of the file"
    place.path.unlink()
    other = loaded.with_stored({"membridge_server_url": B, "admin_key": "db"})
    membridge = other.settings.membridge
    assert (membridge.server_url, membridge.admin_key, membridge.admin_key_file) == (B, "db", None)
    assert place.where(other, "membridge.server_url") == "membridge_server_url"
    assert other.with_stored({}) == loaded


def test_the_command_line_is_stronger():
    loaded = load(None, environ={}, options={"membridge.server_url": A}, stored={"membridge_server_url": B})
    assert loaded.settings.membridge.server_url == A
