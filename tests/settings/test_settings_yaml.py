"""The YAML file: positions, suggestions, and all errors at once."""

import os
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomd.settings import SettingsError
from bloomd.settings.keys import KEYS, SECTIONS

NUMBER = "expected a number of seconds above 0 and up to 86400, such as 3"
WHOLE = "expected a whole number from 2 to 200"
TEXTS = "expected text or a list of text, with one item at least"
QUOTE = "put it into quotes"
DECIMAL = "write it as a plain decimal number, without a leading zero"
SIXTY = "YAML reads digits with a colon as a number to the base of 60: write one plain number"
CONTROL = "expected text without line breaks and other control characters"
MAPPING = "must be a mapping: lines of `key: value`, such as"

# The text of bloomd.yaml, and the one error in it without the name of the file.
ONE_MISTAKE = [
    ("http:\n  bnd: x\n", "2:3: unknown key `bnd` under `http` (did you mean `bind`?)"),
    ("htpp:\n  bind: x\n", "1:1: unknown key `htpp` (did you mean `http`?)"),
    ("bind: x\n", "1:1: unknown key `bind` (did you mean `http.bind`?)"),
    (
        "log:\n  sweep_interval: 1\n",
        "2:3: unknown key `sweep_interval` under `log` (did you mean `tasks.sweep_interval`?)",
    ),
    ("http:\n  zzz: x\n", "2:3: unknown key `zzz` under `http`"),
    ("http: {api_key:s3cret}\n", "1:8: unknown key (is there a space behind the colon?)"),
    ("http:\n  ? [a]\n  : b\n", "2:5: a key must be a plain word"),
    ("http:\n  api_key: a\n  api_key: b\n", "3:3: the key `api_key` is here twice; it was first on line 2"),
    ("http: {}\nlog: {}\nhttp: {}\n", "3:1: the key `http` is here twice; it was first on line 1"),
    ("a word\n", f"1:1: the configuration {MAPPING} `database: ...`"),
    ("- http\n", f"1:1: the configuration {MAPPING} `database: ...`"),
    ("http: [5000]\n", f"1:7: `http` {MAPPING} `bind: ...`"),
    ("probes: &x {fall: 3}\ntasks:\n  <<: *x\n", "3:3: merge keys (`<<`) are not supported; write the keys out"),
    ("database:\n  pool_size: 1\n", f"2:14: `database.pool_size`: {WHOLE}"),
    ("database:\n  pool_size: 10.5\n", f"2:14: `database.pool_size`: {WHOLE}"),
    ("database:\n  pool_size: '10'\n", f"2:14: `database.pool_size`: {WHOLE}, without quotes"),
    (
        "database:\n  pool_size:\n",
        f"2:13: `database.pool_size`: there is no value; {WHOLE} (delete the line to have the default)",
    ),
    ("database:\n  pool_size: [10]\n", f"2:14: `database.pool_size`: {WHOLE}"),
    ("database:\n  pool_size: 012\n", f"2:14: `database.pool_size`: {WHOLE}; {DECIMAL}"),
    (f"database:\n  pool_size: {'9' * 5000}\n", f"2:14: `database.pool_size`: {WHOLE}; {DECIMAL}"),
    ("probes:\n  timeout: 0\n", f"2:12: `probes.timeout`: {NUMBER}"),
    ("probes:\n  timeout: 3s\n", f"2:12: `probes.timeout`: {NUMBER}"),
    ("probes:\n  timeout: .inf\n", f"2:12: `probes.timeout`: {NUMBER}; {DECIMAL}"),
    ("probes:\n  timeout: 12:30\n", f"2:12: `probes.timeout`: {NUMBER}; {SIXTY}"),
    (
        "workers:\n  offline_after: 4\n",
        "2:18: `workers.offline_after`: expected a number of seconds from 5 to 86400, such as 60",
    ),
    ("tasks:\n  keep_days: 0\n", "2:14: `tasks.keep_days`: expected a number of days above 0 and up to 36500"),
    ("audit:\n  keep_days: 30d\n", "2:14: `audit.keep_days`: expected a number of days above 0 and up to 36500"),
    ("tasks:\n  retry_errors: 1\n", "2:17: `tasks.retry_errors`: expected `true` or `false`"),
    (
        "log:\n  level: inof\n",
        "2:10: `log.level`: expected one of `debug`, `info`, `warning`, `error` (did you mean `info`?)",
    ),
    (
        "http:\n  socket_mode: 0660\n",
        f'2:16: `http.socket_mode`: expected text such as "0660"; YAML reads this as a number: {QUOTE}',
    ),
    ("http:\n  socket_mode: 'rw'\n", '2:16: `http.socket_mode`: expected text such as "0660"'),
    (
        "http:\n  socket_group: no\n",
        f"2:17: `http.socket_group`: expected text; YAML reads this as true or false: {QUOTE}",
    ),
    (
        "http:\n  socket_group: 2026-01-01\n",
        f"2:17: `http.socket_group`: expected text; YAML reads this as a date: {QUOTE}",
    ),
    (
        "http:\n  socket_group: !!python/object:os.system x\n",
        "2:17: `http.socket_group`: expected text; tags mean nothing here",
    ),
    ("http:\n  socket_group: !secret x\n", "2:17: `http.socket_group`: expected text; tags mean nothing here"),
    ('http:\n  socket_group: "a\\0b"\n', f"2:17: `http.socket_group`: {CONTROL}"),
    ("http:\n  socket_group: |\n    a\n", f"2:17: `http.socket_group`: {CONTROL}"),
    ("minio:\n  bucket: ab\n", "2:11: `minio.bucket`: expected text of 3 characters or more"),
    ("http:\n  bind: []\n", f"2:9: `http.bind`: {TEXTS}"),
    ("http:\n  bind:\n  - 127.0.0.1:1\n  - unix: /x\n", f"4:5: `http.bind`: {TEXTS}, not a mapping"),
    ("http:\n  bind: 12:30\n", f"2:9: `http.bind`: {TEXTS}; YAML reads this as a number: {QUOTE}"),
    (
        "http:\n  bind: [::1]:5000\n",
        (
            "2:10: not YAML: while parsing a flow node: expected the node content, but found ':';"
            " text that begins with a bracket needs quotes"
        ),
    ),
    (
        "http:\n\tbind: x\n",
        "2:1: not YAML: while scanning for the next token: found character '\\t' that cannot start any token",
    ),
    ("http: [\n", "2:1: not YAML: while parsing a flow node: expected the node content, but found '<stream end>'"),
    (
        "a: [1, 2\nb: 3\n",
        "2:2: not YAML: while parsing a flow sequence that begins on line 1: expected ',' or ']', but got ':'",
    ),
    (
        "http:\n  bind: x\n bnd: y\n",
        (
            "3:2: not YAML: while parsing a block mapping that begins on line 1:"
            " expected <block end>, but found '<block mapping start>'"
        ),
    ),
    ("%TAG !s3cret! x\n--- !t3st!x\n", "2:5: not YAML: while parsing a node: found undefined tag handle"),
    ("http:\n  api_key: *s3cret\n", "2:12: not YAML: found undefined alias"),
    ("a: b\n---\nc: d\n", "2:1: not YAML: expected a single document in the stream, but found another document"),
    ("http: {}\nx: \x01\n", "2:4: not YAML: a control character"),
    ('x: "\\U00110000"\n', " not YAML: an escape or directive that is out of range"),
    ("[" * 5000, " not a configuration: nested too deeply"),
    (b"http: {}\n# caf\xe9\n", " it is not UTF-8 text (line 2); save it in that encoding"),
    (b"#" * ((1 << 20) + 1), " it is larger than 1048576 bytes, which no such file should be"),
]


@pytest.mark.parametrize(("text", "error"), ONE_MISTAKE)
def test_a_mistake_is_reported_where_it_is(place, text, error):
    assert place.errors(text) == [f"bloomd.yaml:{error}"]


def test_all_mistakes_are_reported_at_once_and_in_the_order_of_the_file(place):
    text = "http:\n  bind: [127.0.0.1:1, x]\n  bnd: 1\nlog:\n  level: inof\n  format: no\nprobes: 5\n"
    assert [error.split(" ")[0] for error in place.errors(text)] == [
        "bloomd.yaml:2:23:",
        "bloomd.yaml:3:3:",
        "bloomd.yaml:5:10:",
        "bloomd.yaml:6:11:",
        "bloomd.yaml:7:9:",
    ]


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null\n", "{}\n", "http:\nlog: {}\n", "\ufeffhttp:\n"])
def test_a_file_may_say_nothing(place, text):
    assert place.load(text).settings == place.load("").settings


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("http:\n  bind: 127.0.0.1:5001\n", "bind", ("127.0.0.1:5001",)),
        ("http:\n  bind:\n  - 127.0.0.1:5001\n  - unix:/run/a\n", "bind", ("127.0.0.1:5001", "unix:/run/a")),
        ("http:\n  bind: '[::1]:5001'\n", "bind", ("[::1]:5001",)),
        ("http:\n  max_body_bytes: 8_000_000\n", "max_body_bytes", 8_000_000),
        ("http:\n  drain_seconds: 2\n", "drain_seconds", 2.0),
        ("http:\n  drain_seconds: 2.5e+1\n", "drain_seconds", 25.0),
        ("http:\n  api_key: &k abcdef\n  session_secret: *k\n", "session_secret", "abcdef"),
        ("http:\n  api_key: !!str 12345\n", "api_key", "12345"),
        ("http:\n  api_key: ~\n", "api_key", None),
        ("http:\n  public_url: https://bloom.example.org/\n", "public_url", "https://bloom.example.org"),
    ],
)
def test_values(place, text, key, value):
    assert getattr(place.load(text).settings.http, key) == value


@pytest.mark.parametrize(("text", "days"), [("30", 30.0), ("0.5", 0.5), ("null", None)])
def test_days(place, text, days):
    settings = place.load(f"tasks:\n  keep_days: {text}\naudit:\n  keep_days: {text}\n").settings
    assert (settings.tasks.keep_days, settings.audit.keep_days) == (days, days)


def test_yes_and_on_are_true_as_in_yaml(place):
    text = "http: {api_key: k}\nminio: {secure: on}\ntasks: {retry_errors: off}\n"
    settings = place.load(text).settings
    assert (settings.minio.secure, settings.tasks.retry_errors) == (True, False)


def test_a_file_that_is_not_there_or_is_none(place):
    place.path.unlink()
    with pytest.raises(SettingsError, match=r"bloomd\.yaml: there is no such file$"):
        place.load()
    place.path.mkdir()
    with pytest.raises(SettingsError, match=r"bloomd\.yaml: this is a directory, not a file$"):
        place.load()
    place.path.rmdir()
    os.mkfifo(place.path)
    with pytest.raises(SettingsError, match=r"bloomd\.yaml: this is not a regular file$"):
        place.load()


def test_a_file_that_may_not_be_read_says_how_to_permit_it(open_place, forbid):
    forbid(open_place.path)
    with pytest.raises(SettingsError, match=r"bloomd may not read it; to let it, run: chgrp \S+ \S+ && chmod 640 \S+$"):
        open_place.load()


words = st.sampled_from([*SECTIONS, *(name.rpartition(".")[2] for name in KEYS), "&a", "*a", "!!int", "<<", "0660"])
yaml_like = st.lists(
    st.one_of(words, st.sampled_from([": ", "\n", "\n  ", "- ", "[", "]", "{", "}", '"', "'", "|\n", "~"]))
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.binary(), yaml_like.map("".join)))
def test_no_text_does_worse_than_a_settings_error(scratch, text):
    scratch.write(text)
    with suppress(SettingsError):
        scratch.load()


scalars = st.one_of(st.integers(), st.booleans(), st.text(st.characters(codec="ascii", categories=["L", "N"])))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(name for name in KEYS if "." in name)), scalars), st.integers(0, 3))
def test_each_position_is_that_of_the_value(scratch, values, blank_lines):
    lines: list[str] = []
    at: dict[str, str] = {}
    for section in sorted({name.partition(".")[0] for name in values}):
        lines += [""] * blank_lines + [f"{section}:"]
        for name in sorted(name for name in values if name.startswith(f"{section}.")):
            head = f"  {name.partition('.')[2]}: "
            value = values[name]
            lines.append(head + (f'"{value}"' if isinstance(value, str) else str(value).lower()))
            at[name] = f"{scratch.path}:{len(lines)}:{len(head) + 1}"
    scratch.write("\n".join(lines))
    try:
        sources = scratch.load().sources
    except SettingsError as error:
        for problem in error.problems:
            assert problem.key is None or str(problem).startswith(at[problem.key] + ":")
    else:
        assert {name: f"{sources[name].where}:{sources[name].column}" for name in values} == at
