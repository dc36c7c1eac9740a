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


def test_a_directory_that_may_not_be_searched_is_named(open_place, forbid):
    inner = open_place.directory / "closed"
    (inner / "open").mkdir(parents=True)
    open_place.write("PORT=1\n", "closed/open/runtime.env")
    open_place.write("env_file: closed/open/runtime.env\n").chmod(0o644)
    forbid(inner)
    with pytest.raises(SettingsError, match=rf"bloomd may not search {inner}; to let it, run: chmod a\+x {inner}$"):
        open_place.load()


def test_a_file_that_may_not_be_read_says_how_to_permit_it(open_place, forbid):
    path = open_place.write("PORT=1\n", "runtime.env")
    open_place.write("env_file: runtime.env\n").chmod(0o644)
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


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ({}, "MINIO_ACCESS_KEY and MINIO_SECRET_KEY"),
        ({"MINIO_ACCESS_KEY": "a"}, "MINIO_SECRET_KEY"),
        ({"MINIO_SECRET_KEY": "s"}, "MINIO_ACCESS_KEY"),
    ],
)
def test_minio_without_its_keys_is_not_configured_as_today(place, variables, missing):
    told = {"MINIO_ENDPOINT": "m", "MINIO_PORT": "9100"} | variables
    loaded = place.load("", told)
    assert loaded.settings.minio.endpoint is None
    assert place.warnings(loaded) == [f"MINIO_ENDPOINT is set without {missing}: MinIO counts as not configured"]
    place.write("\n".join(f"{name}={value}" for name, value in told.items()), "runtime.env")
    loaded = place.load("env_file: runtime.env\n")
    assert loaded.settings.minio.endpoint is None
    assert place.warnings(loaded) == [
        f"MINIO_ENDPOINT (runtime.env:1) is set without {missing}: MinIO counts as not configured"
    ]
    assert place.warnings(loaded.with_stored({})) == place.warnings(loaded)


def test_minio_without_its_keys_is_told_by_the_stronger_source(place):
    loaded = place.load("minio:\n  endpoint: f\n  access_key: a\n  secret_key: s\n", {"MINIO_ENDPOINT": "e"})
    assert (loaded.settings.minio.endpoint, place.warnings(loaded)) == ("e", [])


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


KEY = {"RUNTIME_API_KEY": "a-key-that-is-long-enough"}
FILE = "http.bind (bloomd.yaml:2)"


@pytest.mark.parametrize(
    ("text", "variables", "warning"),
    [
        (
            "http:\n  bind: 127.0.0.1:5000\n",
            {"PORT": "5000"} | KEY,
            f"PORT replaces 127.0.0.1:5000 of {FILE}: bloomd listens on all interfaces, port 5000",
        ),
        (
            BINDS,
            {"PORT": "7000"} | KEY,
            f"PORT replaces 127.0.0.1:5001 and [::1]:5001 of {FILE}: bloomd listens on all interfaces, port 7000",
        ),
        (
            "http:\n  bind: 127.0.0.1:5001\n",
            {"PORT": "7000"},
            f"PORT replaces 127.0.0.1:5001 of {FILE}: bloomd listens on 127.0.0.1, port 7000",
        ),
        (
            "http:\n  bind: unix:/x\n",
            {"PORT": "7000"} | KEY,
            f"PORT adds to {FILE}: bloomd listens on all interfaces, port 7000",
        ),
        ("http:\n  bind: 127.0.0.1:7000\n", {"PORT": "7000"}, None),
        ("http:\n  bind: :7000\n", {"PORT": "7000"} | KEY, None),
        ("http:\n  bind: :7000\n", {"PORT": ""} | KEY, None),
        ("", {"PORT": "7000"} | KEY, None),
    ],
)
def test_port_that_replaces_binds_says_so(place, text, variables, warning):
    loaded = place.load(text, variables)
    assert place.warnings(loaded) == ([warning] if warning else [])
    assert loaded.with_stored({}) == loaded


def test_port_says_where_it_and_the_binds_were_told(place):
    place.write("RUNTIME_API_KEY=a-key-that-is-long-enough\nPORT=7000\n", "runtime.env")
    loaded = place.load("env_file: runtime.env\n", preset={"http.bind": ["127.0.0.1:1"]})
    assert place.warnings(loaded) == [
        "PORT (runtime.env:2) replaces 127.0.0.1:1 of http.bind (preset): bloomd listens on all interfaces, port 7000"
    ]
    assert place.load("env_file: runtime.env\n", options={"http.bind": ["127.0.0.1:1"]}).warnings == ()


URL = "MEMBRIDGE_SERVER_URL: expected a URL that begins with http:// or https://"
PORT = "PORT: expected a port number from 1 to 65535"


def test_what_is_wrong_in_one_place_hides_nothing_elsewhere(place):
    bad = {"MEMBRIDGE_SERVER_URL": "nonsense", "PORT": "abc"}
    assert set(place.errors("", bad)) == {URL, PORT}
    assert set(place.errors("http: [\n", bad)) >= {URL, PORT}
    assert set(place.errors("env_file: not-there\n", bad)) >= {URL, PORT}
    assert len(place.errors("http: {public_url: x}\ndatabase: {url: x}\nenv_file: not-there\n")) == 3

    place.write("PORT=abc\nMEMBRIDGE_SERVER_URL=nonsense\n", "runtime.env")
    assert place.errors("env_file: runtime.env\n") == [f"runtime.env:1: {PORT}", f"runtime.env:2: {URL}"]
    place.write("garbage\nMEMBRIDGE_SERVER_URL=nonsense\nA='b\n", "runtime.env")
    assert place.errors("env_file: runtime.env\nhttp: {bind: ':5'}\n") == [
        "runtime.env:1: expected NAME=value",
        f"runtime.env:2: {URL}",
        "runtime.env:3: A: the value's quotes do not end where the line ends",
    ]
    assert place.errors("http: {bind: nonsense}\n", {"PORT": "5000"})[0].startswith("bloomd.yaml:1:14: `http.bind`")
    key = "expected a key of printable ASCII characters, without a blank at its ends"
    errors = place.errors("http:\n  api_key: 12345\n  public_url: 5\n", {"MEMBRIDGE_ADMIN_KEY": " k"} | bad)
    assert len(errors) == 5
    assert set(errors[2:]) == {f"MEMBRIDGE_ADMIN_KEY: {key}", URL, PORT}


def test_other_values_of_node_env_and_other_variables_mean_nothing(place):
    environ = {"NODE_ENV": "development", "HOME": "/", "UNRELATED": "x"}
    assert place.load("", environ).settings == place.load("").settings


@pytest.mark.parametrize("name", VARIABLES)
def test_an_empty_variable_is_not_set(place, name):
    assert place.load("", {name: ""}).settings == place.load("").settings
