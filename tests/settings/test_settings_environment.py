"""The environment of today's runtime and its file."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomd.settings import SettingsError
from bloomd.settings.env_file import parse
from bloomd.settings.environment import VARIABLES

GUIDE = """\
NODE_ENV=production
PORT=5000
DATABASE_URL=postgresql://bloom:password@127.0.0.1:5432/bloom_runtime
MEMBRIDGE_SERVER_URL=http://127.0.0.1:8000
MEMBRIDGE_ADMIN_KEY=admin-key-of-the-guide
RUNTIME_API_KEY=api-key-of-the-guide
"""


def test_the_guides_file_means_what_it_means_today(place):
    place.write(GUIDE, "runtime.env")
    loaded = place.load("env_file: runtime.env\n")
    settings = loaded.settings
    assert settings.log.format == "json"
    assert settings.http.bind == (":5000",)
    assert settings.http.api_key == "api-key-of-the-guide"
    assert settings.database.url == "postgresql://bloom:password@127.0.0.1:5432/bloom_runtime"
    assert settings.membridge.server_url == "http://127.0.0.1:8000"
    assert settings.membridge.admin_key == "admin-key-of-the-guide"
    assert place.where(loaded, "http.bind") == "runtime.env:2"
    assert loaded.warnings == ()


NOT_A_DATABASE = (
    "PostgreSQL's library does not understand this; expected postgresql://user:password@host:5432/database"
    " or key=value pairs (in a URL, write @ as %40, / as %2F and % as %25 in the password)"
)

LINES = [
    ("A=b", "b"),
    ("export A=b", "b"),
    ("  A=b  ", "b"),
    ("A=", ""),
    ("A=b # note", "b"),
    ("A=b#c", "b#c"),
    ("A=# note", ""),
    ("A=postgresql://h/d?a=1&b=2", "postgresql://h/d?a=1&b=2"),
    ("A=$HOME`id`", "$HOME`id`"),
    ("A='b # $c \"'", 'b # $c "'),
    ('A="b \\" \\\\ \\$ \\n"', 'b " \\ $ \\n'),
    ('A="b" # note', "b"),
    ("A=b=c", "b=c"),
    ("A=b\nA=c", "c"),
    ("# A=b\n\nA=c\r\n", "c"),
]


@pytest.mark.parametrize(("text", "value"), LINES)
def test_a_line_of_the_file(text, value):
    variables, problems = parse(text, Path("x.env"))
    assert (variables["A"].value, problems) == (value, [])


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("nonsense", "runtime.env:2: expected NAME=value"),
        ("1A=b", "runtime.env:2: expected NAME=value"),
        ("A = b", "runtime.env:2: expected NAME=value"),
        ("A='b", "runtime.env:2: A: the value's quotes do not end where the line ends"),
        ('A="b" c', "runtime.env:2: A: the value's quotes do not end where the line ends"),
        ("PORT=http", "runtime.env:2: PORT: expected a port number from 1 to 65535"),
        ("DATABASE_URL=s3cret", f"runtime.env:2: DATABASE_URL: {NOT_A_DATABASE}"),
    ],
)
def test_a_bad_line_is_named(place, line, error):
    place.write(f"# today's\n{line}\n", "runtime.env")
    assert place.errors("env_file: runtime.env\n") == [error]


@given(st.text())
def test_any_text_is_parsed_or_refused(text):
    variables, problems = parse(text, Path("x.env"))
    assert all("\n" not in variable.value for variable in variables.values())
    assert all(problem.source.line for problem in problems)


def test_a_file_that_is_away_is_reported_where_it_is_named(place):
    assert place.errors("http: {}\nenv_file: runtime.env\n") == [
        "bloomd.yaml:2:11: `env_file`: runtime.env: there is no such file"
    ]


def test_a_file_that_is_away_hides_what_it_might_have_said(place):
    """Its RUNTIME_API_KEY may be what allows this bind."""
    assert len(place.errors("env_file: runtime.env\nhttp:\n  bind: :5000\n")) == 1


def test_a_file_that_may_not_be_read_says_how_to_permit_it(open_place, forbid):
    path = open_place.write("PORT=1\n", "runtime.env")
    open_place.write("env_file: runtime.env\n")
    forbid(path)
    with pytest.raises(SettingsError, match=r"bloomd\.yaml:1:11: `env_file`: .*chgrp \S+ \S+runtime\.env && chmod 640"):
        open_place.load()


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("PORT", "0", "expected a port number from 1 to 65535"),
        ("PORT", "5000 ", "expected a port number from 1 to 65535"),
        ("PORT", "٥٠٠٠", "expected a port number from 1 to 65535"),
        ("MINIO_USE_SSL", "maybe", "expected true or false"),
        ("RUNTIME_API_KEY", "\udc80key", "expected text without line breaks and other control characters"),
        ("RUNTIME_API_KEY", "ключ", "expected a key of printable ASCII characters, without a blank at its ends"),
        ("MEMBRIDGE_SERVER_URL", "ftp://x", "expected a URL that begins with http:// or https://"),
        ("MINIO_ENDPOINT", "m", "an endpoint needs `minio.access_key` and `minio.secret_key` as well"),
        ("DATABASE_URL", "s3cret", NOT_A_DATABASE),
    ],
)
def test_a_bad_variable_is_named(place, name, value, error):
    assert place.errors("", {name: value}) == [f"{name}: {error}"]


MINIO = {"MINIO_ACCESS_KEY": "a", "MINIO_SECRET_KEY": "s"}


@pytest.mark.parametrize(
    ("variables", "endpoint", "secure"),
    [
        ({"MINIO_ENDPOINT": "m"}, "m", False),
        ({"MINIO_ENDPOINT": "m", "MINIO_PORT": "9100", "MINIO_USE_SSL": "true"}, "m:9100", True),
        ({"MINIO_ENDPOINT": "m:9200", "MINIO_PORT": "9100", "MINIO_USE_SSL": "false"}, "m:9200", False),
        ({"MINIO_PORT": "9100"}, None, False),
    ],
)
def test_minio(place, variables, endpoint, secure):
    minio = place.load("", MINIO | variables).settings.minio
    assert (minio.endpoint, minio.secure) == (endpoint, secure)


BINDS = "http:\n  bind: [127.0.0.1:5001, unix:/run/bloomd/http.sock, '[::1]:5001']\n"


@pytest.mark.parametrize(
    ("text", "variables", "options", "binds"),
    [
        (BINDS, {"PORT": "7000", "RUNTIME_API_KEY": "k"}, {}, (":7000", "unix:/run/bloomd/http.sock")),
        (BINDS, {"PORT": "7000"}, {}, ("127.0.0.1:7000", "unix:/run/bloomd/http.sock")),
        (BINDS, {"PORT": ""}, {}, ("127.0.0.1:5001", "unix:/run/bloomd/http.sock", "[::1]:5001")),
        (BINDS, {"PORT": "7000"}, {"http.bind": ["127.0.0.1:8000"]}, ("127.0.0.1:8000",)),
        ("http:\n  api_key_file: key\n", {"PORT": "7000"}, {}, (":7000",)),
        ("", {"PORT": "7000"}, {}, ("127.0.0.1:7000",)),
    ],
)
def test_port_replaces_the_tcp_binds_only(place, text, variables, options, binds):
    place.write("s3cret\n", "key")
    assert place.load(text, variables, options=options).settings.http.bind == binds


def test_other_values_of_node_env_and_other_variables_mean_nothing(place):
    environ = {"NODE_ENV": "development", "HOME": "/", "UNRELATED": "x"}
    assert place.load("", environ).settings == place.load("").settings


@pytest.mark.parametrize("name", VARIABLES)
def test_an_empty_variable_is_not_set(place, name):
    assert place.load("", {name: ""}).settings == place.load("").settings
