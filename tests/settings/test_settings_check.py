"""The rules across keys, and of what addresses and URLs may be."""

import pytest

from bloomd.settings import Tcp, Unix, http_url, key_problem, origin, parse_bind, url_problem

NO_GROUP = "there is no group `no-such` on this machine: create it, or name another one"
NOBODY_KNOWS = (
    "can be reached from other machines, and no key is set: set `http.api_key` (or `http.api_key_file`),"
    " or say `http.allow_unauthenticated: true` if everybody may do everything"
)
KEY = "expected a key of printable ASCII characters, without a blank at its ends"
SERVED = "expected `host:port`, such as 127.0.0.1:8000: its clients are told a TCP port"
NO_ADMIN_KEY = (
    "can be reached from other machines, and no key is set: set `membridge.serve_key`"
    " (or `membridge.serve_key_file`), or the admin key (MEMBRIDGE_ADMIN_KEY)"
)
ENDPOINT = "`minio.endpoint`: expected `host` or `host:port`"
NETWORK = "expected a network such as 10.0.0.0/8, or one address"
SCHEMELESS = "expected `host` or `host:port`, without a scheme: `minio.secure` says whether to use TLS"
CREDENTIALS = "minio:\n  access_key: a\n  secret_key: s\n  endpoint: "


@pytest.mark.parametrize(
    ("text", "error"),  # the error without the name of the file
    [
        ("http:\n  bind: :5000\n", f"2:9: `http.bind`: `:5000` {NOBODY_KNOWS}"),
        ("http:\n  bind:\n  - unix:/x\n  - 10.0.0.1:1\n", f"4:5: `http.bind`: `10.0.0.1:1` {NOBODY_KNOWS}"),
        ("http:\n  bind: '[::]:1'\n", f"2:9: `http.bind`: `[::]:1` {NOBODY_KNOWS}"),
        ("http:\n  bind: some.host:1\n", f"2:9: `http.bind`: `some.host:1` {NOBODY_KNOWS}"),
        ("http:\n  bind: [unix:/x, unix:/x]\n", "2:19: `http.bind`: `unix:/x` is here twice"),
        ("http:\n  bind: ['[::1]:1', '[0::1]:1']\n", "2:21: `http.bind`: `[0::1]:1` is here twice"),
        ("http:\n  bind: [localhost:5, '127.0.0.1:5']\n", "2:23: `http.bind`: `127.0.0.1:5` overlaps `localhost:5`"),
        ("http:\n  bind: unix:/x\n  socket_group: no-such\n", f"3:17: `http.socket_group`: {NO_GROUP}"),
        ("http:\n  api_key: ключ\n", f"2:12: `http.api_key`: {KEY}"),
        ("http:\n  api_key: ' a'\n", f"2:12: `http.api_key`: {KEY}"),
        ("membridge:\n  agent_key: ''\n", f"2:14: `membridge.agent_key`: {KEY}"),
        ("membridge:\n  serve: unix:/x\n", f"2:10: `membridge.serve`: {SERVED}"),
        ("membridge:\n  serve: '127.0.0.1:0'\n", f"2:10: `membridge.serve`: {SERVED}"),
        ("membridge:\n  serve: :8000\n", f"2:10: `membridge.serve`: `:8000` {NO_ADMIN_KEY}"),
        ("membridge:\n  serve: some.host:1\n", f"2:10: `membridge.serve`: `some.host:1` {NO_ADMIN_KEY}"),
        (
            "membridge:\n  serve: localhost:5000\n",
            "2:10: `membridge.serve`: `localhost:5000` overlaps `127.0.0.1:5000` of `http.bind`",
        ),
        ("membridge:\n  serve_key: ' a'\n", f"2:14: `membridge.serve_key`: {KEY}"),
        (
            "http:\n  allowed_hosts: [a, 'b:1']\n",
            "2:22: `http.allowed_hosts`: expected a name without scheme and port, or `*`",
        ),
        (
            "http:\n  trusted_proxies: ['unix:', 10.0.0.1/8]\n",
            "2:30: `http.trusted_proxies`: `10.0.0.1/8` has bits beyond its length (did you mean `10.0.0.0/8`?)",
        ),
        ("http:\n  metrics_allow: localhost\n", f"2:18: `http.metrics_allow`: {NETWORK}"),
        ("workers:\n  allowed_networks: ['unix:']\n", f"2:22: `workers.allowed_networks`: {NETWORK}"),
        (
            "http:\n  public_url: bloom.example.org\n",
            "2:15: `http.public_url`: expected a URL that begins with http:// or https://",
        ),
        (
            "minio:\n  endpoint: m\n",
            "2:13: `minio.endpoint`: an endpoint needs `minio.access_key` and `minio.secret_key` as well",
        ),
        (CREDENTIALS + "http://m\n", f"4:13: `minio.endpoint`: {SCHEMELESS}"),
        (CREDENTIALS + "m/x\n", f"4:13: {ENDPOINT}"),
        (CREDENTIALS + "m:0\n", f"4:13: {ENDPOINT}"),
        (CREDENTIALS + "''\n", f"4:13: {ENDPOINT}"),
        (
            "tasks:\n  retry_delay: 301\n",
            "2:16: `tasks.retry_delay`: a first delay of 301 s exceeds the longest one, 300 s",
        ),
        (
            "tasks:\n  retry_delay_max: 4\n",
            "2:20: `tasks.retry_delay_max`: a first delay of 5 s exceeds the longest one, 4 s",
        ),
        ("control:\n  socket: run/x\n", "2:11: `control.socket`: expected an absolute path, one that begins with `/`"),
        (
            f"control:\n  socket: /{'ї' * 54}\n",
            "2:11: `control.socket`: a socket's path has at most 107 bytes, and this one has 109",
        ),
    ],
)
def test_a_rule(place, text, error):
    assert place.errors(text) == [f"bloomd.yaml:{error}"]


@pytest.mark.parametrize(
    "text",
    [
        "database:\n  url: postgresql://u:a?b%40c@h1:1,h2/d?options=a@b\n",
        "database:\n  url: host=/run/pg user=u@v\n",
        "http:\n  bind: :5000\n  api_key: k\n",
        "membridge:\n  serve: :8000\n  serve_key: k\n",
        "membridge:\n  serve: :8000\n  admin_key: k\n",
        "membridge:\n  serve: '[::1]:8000'\n",
        "http:\n  socket_group: no-such\n",
        "http:\n  bind: unix:/x\n  socket_group: root\n",
        "control:\n  group: no-such\n",
        "http:\n  bind: :5000\n  allow_unauthenticated: true\n",
        "http:\n  bind: [localhost:1, '127.9.9.9:1', '[::1]:1', unix:/x]\n",
        "http:\n  allowed_hosts: ['*', bloom.example.org, 10.0.0.1, '::1']\n",
        "http:\n  trusted_proxies: [10.0.0.1, 'fd00::/8', 'unix:']\n",
        f"control:\n  socket: /{'x' * 106}\n",
        CREDENTIALS + "'m:9000'\n",
        CREDENTIALS + "'[::1]:9000'\n",
    ],
)
def test_what_is_allowed(place, text):
    place.load(text)


UNCLEAR = "PostgreSQL's library does not understand this; expected postgresql://user:password@host:5432/database"
PARAMETER = "PostgreSQL's library does not know one of the parameters in this"
PERCENT = "a % in this is not followed by two hexadecimal digits (in a URL, % itself is written %25)"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3cret", UNCLEAR),
        ("mysql://u:s3cret@h/d", UNCLEAR),
        ("postgresql://u:s3@cret@h/d", UNCLEAR),
        ("postgresql://u:12/s3cret@h/d", UNCLEAR),
        ("postgresql://u:s3/cret@h/d", UNCLEAR),
        ("postgresql://u:s3?cr@s3cret@h/d", UNCLEAR),
        ("postgresql://u:s3%cret@h/d", PERCENT),
        ("host=h very-s3cret=1", PARAMETER),
        ("postgresql://u@h/d?password=s3cr&very-s3cret=1", PARAMETER),
        ("postgresql://u:s3cret@h/d?sslmod=require", f"{PARAMETER} (did you mean `sslmode`?)"),
        ("host=h password=s3cret connect_timout=3", f"{PARAMETER} (did you mean `connect_timeout`?)"),
        ("postgresql://u:s3cret@h/d?sslmode", "a parameter in this URL has no `=`"),
        ("postgresql://u:s3cret@h/d?sslmode=a=b", "a parameter in this URL has more than one `=`"),
        ("port=s3cret", "expected a port number from 1 to 65535 in this"),
        ("postgresql://u:s3cret@h:70000/d", "expected a port number from 1 to 65535 in this"),
        ("postgresql://u:s3cret@h:0/d", "expected a port number from 1 to 65535 in this"),
        ("postgresql://[::1/d", "an address in brackets in this URL has no end"),
    ],
)
def test_what_is_no_database_url(place, url, reason):
    (error,) = place.errors(f"database:\n  url: '{url}'\n")
    assert error.startswith(f"bloomd.yaml:2:8: `database.url`: {reason}")
    assert reason == UNCLEAR or error.endswith(reason)
    assert "s3cr" not in error


def test_an_open_bind_of_the_command_line_is_explained_in_its_terms(place):
    assert place.errors("", options={"http.bind": ["0.0.0.0:5000"]}) == [
        (
            "`http.bind`: `0.0.0.0:5000` can be reached from other machines, and no key is set:"
            " set RUNTIME_API_KEY, or say `--allow-unauthenticated` if everybody may do everything"
        ),
    ]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (":5", "127.0.0.1:5", True),
        (":5", "[::1]:5", True),
        (":5", "0.0.0.0:5", True),
        ("0.0.0.0:5", "127.0.0.1:5", True),
        ("0.0.0.0:5", "some.host:5", True),
        ("[::]:5", "[::1]:5", True),
        ("[::]:5", "127.0.0.1:5", False),
        ("0.0.0.0:5", "[::1]:5", False),
        (":5", "127.0.0.1:6", False),
        (":0", "127.0.0.1:0", False),
        (":5", "unix:/x", False),
        ("127.0.0.1:5", "127.0.0.2:5", False),
    ],
)
def test_binds_that_overlap(place, one, other, both):
    for first, second in ((one, other), (other, one)):
        text = f"http:\n  api_key: k\n  bind:\n  - '{first}'\n  - '{second}'\n"
        if both:
            assert place.errors(text) == [f"bloomd.yaml:5:5: `http.bind`: `{second}` overlaps `{first}`"]
        else:
            place.load(text)


def test_no_rule_speaks_about_a_key_that_could_not_be_read(place):
    assert len(place.errors("http:\n  bind: :5000\n  api_key: 12345\n")) == 1


def test_warnings_about_a_missing_key(place):
    assert "named keys or workers' tokens, authentication is off" in place.load("").warnings[0]
    assert "whoever reaches" in place.load("http: {bind: ':1', allow_unauthenticated: true}").warnings[0]
    assert place.load("http: {api_key: k}").warnings == ()


def test_a_key_that_can_be_guessed_is_told_where_others_may_try(place):
    for key, bind, told in (("short", ":1", True), ("short", "unix:/x", False), ("k" * 16, ":1", False)):
        warnings = place.load(f"http: {{bind: '{bind}', api_key: {key}}}").warnings
        assert any("fewer than 16 characters" in warning for warning in warnings) == told


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:5000", Tcp("127.0.0.1", 5000)),
        (":5000", Tcp(None, 5000)),
        ("[::1]:0", Tcp("::1", 0)),
        ("a-b.example:1", Tcp("a-b.example", 1)),
        ("unix:/run/x", Unix("/run/x")),
    ],
)
def test_binds(text, address):
    assert parse_bind(text) == address


@pytest.mark.parametrize(
    "text", ["", "5000", "host", "host:", "host:x", "host:65536", "*:1", "::1:1", "[::x]:1", "a b:1", "a@b:1", "unix:x"]
)
def test_what_is_no_bind(text):
    with pytest.raises(ValueError, match="expected"):
        parse_bind(text)


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("http://h", "http://h"),
        ("HTTP://H:80/path/", "http://h"),
        ("https://h:443", "https://h"),
        ("https://h:80", "https://h:80"),
        ("http://[::1]:8000/x", "http://[::1]:8000"),
    ],
)
def test_origins(url, same):
    assert origin(url) == same


@pytest.mark.parametrize(
    "url",
    [
        "", "h", "//h", "http:", "http:///", "http://:80", "ftp://h", "http://h:x", "http://h:0", "http://h:65536",
        "http://u@h", "http://u:s3cret@h", "http://@h", "http://h\\@evil", "http://h#@evil", "http://h?x", "http://h/#",
        "http://h h", "http://h\n", "http://хост", "http://[::1", "http://[v1.x]", "http://%41", "http://-",
    ],
)  # fmt: skip
def test_what_is_no_url_of_a_server(url):
    assert "s3cret" not in (url_problem(url) or "s3cret")
    with pytest.raises(ValueError):
        origin(url)


def test_a_url_has_no_slash_at_its_end():
    assert http_url("https://h/path/") == "https://h/path"
    assert key_problem("ok") is None
