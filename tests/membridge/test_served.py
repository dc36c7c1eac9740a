"""With which key a control plane is served, and whether our own client talks to it."""

from typing import Any

import pytest

from bloomd.membridge.server.served import Served, url_of
from bloomd.settings import load

SERVE = "127.0.0.1:8000"
URL = "http://127.0.0.1:8000"
OTHER = "http://10.0.0.9:8000"


def served(stored: dict[str, str] | None = None, **told: Any) -> Served:
    names = {"admin_key": "MEMBRIDGE_ADMIN_KEY", "server_url": "MEMBRIDGE_SERVER_URL"}
    environ = {names[name]: value for name, value in told.items() if name in names}
    options = {f"membridge.{name}": value for name, value in told.items() if name not in names}
    loaded = load(None, environ={**environ, "RUNTIME_API_KEY": "k"}, options=options, stored=stored)
    return Served(lambda: loaded)


def test_the_key_is_its_own_else_the_admin_key_else_one_that_nobody_knows() -> None:
    assert served(serve=SERVE, serve_key="own", admin_key="admin").key == "own"
    assert served(serve=SERVE, admin_key="admin").key == "admin"
    one, other = served(serve=SERVE).key, served(serve=SERVE).key
    assert len(one) >= 40
    assert one != other


@pytest.mark.parametrize("origin", [{}, {"admin_key_origin": URL}, {"membridge_server_url": URL}])
def test_a_key_that_is_saved_through_the_api_never_becomes_its_own(origin: dict[str, str]) -> None:
    stored = {"admin_key": "saved", **origin}
    assert served(stored, serve=SERVE, admin_key="admin").key == "admin"
    assert served(stored, serve=SERVE).key != "saved"


@pytest.mark.parametrize(
    ("told", "stored", "url", "key"),
    [
        ({}, {}, None, None),
        ({"serve": SERVE, "admin_key": "admin"}, {}, URL, "admin"),
        ({"serve": SERVE, "serve_key": "own", "admin_key": "admin"}, {}, URL, "own"),
        ({"serve": SERVE}, {}, URL, "generated"),
        # somebody names another server
        ({"serve": SERVE, "server_url": OTHER, "admin_key": "admin"}, {}, OTHER, "admin"),
        ({"serve": SERVE, "admin_key": "admin"}, {"membridge_server_url": OTHER, "admin_key": "db"}, OTHER, "db"),
        ({"serve": SERVE, "admin_key": "admin"}, {"membridge_server_url": OTHER}, OTHER, None),
        ({"serve": SERVE}, {"membridge_server_url": OTHER}, OTHER, None),
        # somebody names the one that is served, as the guide's page has it
        ({"serve": SERVE, "admin_key": "admin"}, {"membridge_server_url": f"{URL}/"}, URL, "admin"),
        ({"serve": SERVE}, {"membridge_server_url": URL}, URL, "generated"),
        ({"serve": SERVE, "server_url": URL, "admin_key": "admin"}, {}, URL, "admin"),
        ({"serve": SERVE}, {"membridge_server_url": URL, "admin_key": "wrong"}, URL, "wrong"),
    ],
)
def test_the_client_talks_to_it_as_long_as_nobody_names_another_one(
    told: dict[str, Any], stored: dict[str, str], url: str | None, key: str | None
) -> None:
    ours = served(stored, **told)
    settings = ours.for_client()
    assert (settings.server_url and settings.server_url.rstrip("/")) == url
    assert settings.admin_key == (ours.generated if key == "generated" else key)


@pytest.mark.parametrize(
    ("serve", "url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost:8000", "http://localhost:8000"),
        (":8000", "http://127.0.0.1:8000"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("[::]:8000", "http://[::1]:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("10.0.0.7:8000", "http://10.0.0.7:8000"),
    ],
)
def test_where_it_is_reached(serve: str, url: str) -> None:
    assert url_of(serve) == url
