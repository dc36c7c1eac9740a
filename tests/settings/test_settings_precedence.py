"""Who wins, for every variable and every way to tell a secret."""

import itertools

import pytest

from bloomd.settings import load
from bloomd.settings.environment import VARIABLES
from bloomd.settings.keys import SECRETS, flatten
from bloomd.settings.problems import KINDS

# Of each key with a variable: a value, as YAML and the variable have it. Each level has its own number at the end.
VALUES = {
    "database.url": "postgresql://h/d{}",
    "http.api_key": "key{}",
    "http.session_secret": "key{}",
    "membridge.server_url": "http://h{}",
    "membridge.admin_key": "key{}",
    "membridge.agent_key": "key{}",
    "minio.endpoint": "h{}",
    "minio.bucket": "bucket{}",
    "minio.access_key": "key{}",
    "minio.secret_key": "key{}",
}
MANY_WAYS = {"PORT", "MINIO_PORT", "MINIO_USE_SSL", "NODE_ENV"}  # tested where the environment is
LEVELS = ("preset", "file", "env_file", "environment", "option")
MATRIX = [
    (variable, levels)
    for variable in VARIABLES
    if variable not in MANY_WAYS
    for count in range(1, len(LEVELS) + 1)
    for levels in itertools.combinations(LEVELS, count)
]


def tell(place, key, variable, levels):
    """The key, told at each of these levels with the level's own value."""
    value = {level: VALUES[key].format(LEVELS.index(level)) for level in levels}
    section, _, name = key.partition(".")
    lines = ["env_file: runtime.env"]
    # An endpoint needs its keys, whoever tells it.
    preset = {"minio.access_key": "a", "minio.secret_key": "s"}
    if "file" in levels:
        lines += [f"{section}:", f"  {name}: {value['file']}"]
    place.write(f"{variable}={value['env_file']}" if "env_file" in levels else "", "runtime.env")
    return place.load(
        "\n".join(lines),
        {variable: value["environment"] if "environment" in levels else ""},
        preset=preset | ({key: value["preset"]} if "preset" in levels else {}),
        options={key: value["option"]} if "option" in levels else {},
    )


@pytest.mark.parametrize(("variable", "levels"), MATRIX)
def test_the_strongest_wins(place, variable, levels):
    key = VARIABLES[variable]
    loaded = tell(place, key, variable, levels)
    strongest = levels[-1]
    assert flatten(loaded.settings)[key] == VALUES[key].format(LEVELS.index(strongest))
    assert loaded.sources[key].kind == strongest
    expected = {"file": "bloomd.yaml:3", "env_file": "runtime.env:1", "environment": variable}.get(strongest)
    assert place.where(loaded, key) == expected


def test_every_variable_is_in_the_matrix():
    assert {VARIABLES[variable] for variable in VARIABLES if variable not in MANY_WAYS} == set(VALUES)
    assert tuple(kind for kind in KINDS if kind in LEVELS) == LEVELS


def test_node_env_wins_over_the_file(place):
    loaded = place.load("log:\n  format: text\n", {"NODE_ENV": "production"})
    assert (loaded.settings.log.format, place.where(loaded, "log.format")) == ("json", "NODE_ENV")


def test_without_a_file():
    loaded = load(None, environ={"DATABASE_URL": "postgresql://h/d"}, preset={"http.bind": ["unix:/x"]})
    assert (loaded.settings.database.url, loaded.settings.http.bind) == ("postgresql://h/d", ("unix:/x",))
    assert (loaded.sources["http.bind"].kind, loaded.sources["log.level"].kind) == ("preset", "default")


@pytest.mark.parametrize("key", SECRETS)
def test_a_secret_from_a_file(place, key):
    section, _, name = key.partition(".")
    secret = "postgresql://h/d" if key == "database.url" else "s3cret"
    place.write(f"{secret}\r\n", "secret")
    loaded = place.load(f"{section}:\n  {name}_file: secret\n")
    assert flatten(loaded.settings)[key] == secret
    assert place.where(loaded, key) == "secret (bloomd.yaml:2)"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "there is no such file"),
        (b"", "it is empty"),
        (b"\n", "it is empty"),
        (b"\xff\n", "it is not UTF-8 text (line 1); save it in that encoding"),
        (b"s3cret\nmore\n", "expected text without line breaks and other control characters"),
    ],
)
def test_a_secret_file_that_is_none(place, content, error):
    if content is not None:
        place.write(content, "secret")
    text = "http:\n  bind: :5000\n  api_key_file: secret\n"
    assert place.errors(text) == [f"bloomd.yaml:3:17: `http.api_key_file`: secret: {error}"]


def test_a_secret_told_twice_in_one_place(place):
    place.write("s3cret", "secret")
    text = "http:\n  api_key_file: secret\n  api_key: s3cret\n"
    assert place.errors(text) == [
        "bloomd.yaml:3:12: `http.api_key` is told here and by `http.api_key_file` as well; keep one of them"
    ]


def test_the_stronger_way_of_a_secret_wins(place):
    place.write("of the file", "secret")
    loaded = place.load("http:\n  api_key_file: not there\n", {"RUNTIME_API_KEY": "of the environment"})
    assert (loaded.settings.http.api_key, loaded.settings.http.api_key_file) == ("of the environment", None)
    loaded = place.load("http:\n  api_key_file: secret\n", preset={"http.api_key": "of the preset"})
    assert loaded.settings.http.api_key == "of the file"
    loaded = place.load("http:\n  api_key:\n", preset={"http.api_key_file": "not there"})
    assert loaded.settings.http.api_key is None


def test_a_file_of_secrets_that_everybody_may_read_deserves_a_warning(place):
    place.write("s3cret", "secret").chmod(0o644)
    place.write("RUNTIME_API_KEY=a-key-that-is-long-enough\nPORT=5\n", "runtime.env").chmod(0o640)
    text = "env_file: runtime.env\nhttp:\n  session_secret_file: secret\nmembridge:\n  agent_key: s3cret\n"
    place.write(text).chmod(0o604)
    assert sorted(place.warnings(place.load())) == [
        f"everybody on this machine may read the secrets in {name}; run: chmod o-rwx {name}"
        for name in ("bloomd.yaml", "secret")
    ]
    (place.directory / "runtime.env").chmod(0o444)
    assert "runtime.env" in " ".join(place.warnings(place.load(environ={"RUNTIME_API_KEY": "other"})))


def test_a_file_without_a_secret_may_be_read_by_everybody(place):
    place.write("PORT=5000\nDATABASE_URL=postgresql://u@h/d\n", "runtime.env").chmod(0o644)
    text = "env_file: runtime.env\ndatabase:\n  url: postgresql://u@h/d\nhttp:\n  api_key:\n"
    place.write(text).chmod(0o644)
    assert place.warnings(place.load()) == []
    place.write("database:\n  url: host=h password=s3cret\n").chmod(0o644)
    assert "may read" in place.warnings(place.load())[0]


def test_a_bad_option_is_a_problem_like_any_other(place):
    errors = place.errors("log:\n  level: x\n", options={"http.bind": ["x"]})
    assert errors[0].startswith("bloomd.yaml:2:10: `log.level`: expected one of")
    assert errors[1].startswith("`http.bind`: expected `host:port`")
