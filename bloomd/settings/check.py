"""What the settings must hold beyond their types: what one value must be, and what one key must be beside another.

A rule names the keys that it looks at. It is skipped when one of them is wrong by itself, so that one mistake is
reported once, or is uncertain, because a file that cannot be read may tell it.
"""

import grp
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from bloomd.settings.binds import Tcp, Unix, parse_bind
from bloomd.settings.keys import flatten
from bloomd.settings.model import Settings
from bloomd.settings.problems import DEFAULT, Problem, Source
from bloomd.settings.values import COMPLAINTS, bind_problem

# Sixteen characters of a random text are more than anybody tries out.
SHORTEST_KEY = 16


@dataclass(frozen=True, slots=True)
class _Finding:
    keys: tuple[str, ...]
    """The keys that it is about. The first that somebody told is where it is reported."""
    text: str
    item: int | None = None
    on_command_line: str | None = None
    """The text for who told it on the command line, where that differs."""


_Rule = Callable[[Settings], Iterator[_Finding]]
_rules: list[tuple[tuple[str, ...], _Rule]] = []


def check(
    settings: Settings, sources: Mapping[str, Source], *, wrong: Collection[str], uncertain: Collection[str]
) -> list[Problem]:
    """What is wrong with these settings, beside the keys that are known to be."""
    unusable = {*wrong, *uncertain}
    findings = [finding for keys, rule in _rules if not unusable.intersection(keys) for finding in rule(settings)]
    return [_problem(finding, sources) for finding in [*_values(settings, wrong), *findings]]


def without_key(settings: Settings) -> list[str]:
    """What deserves to be said of a missing `http.api_key`: it is allowed, and a named key may take its place.

    What else there is, the database knows: until it is asked, this has to be true in every case.
    """
    if settings.http.api_key is not None:
        return []
    if any(_beyond_loopback(bind) for bind in settings.http.bind):
        start, who = "http.api_key is not set and http.allow_unauthenticated is", "whoever reaches the port"
    else:
        start, who = "http.api_key is not set", "every program on this machine"
    unless = "unless there are named keys or workers' tokens"
    return [f"{start}: {unless}, authentication is off, and {who} may do everything"]


def short_key(settings: Settings) -> list[str]:
    """What deserves to be said of a key that can be guessed, where others than this machine may try."""
    key = settings.http.api_key
    if key is None or len(key) >= SHORTEST_KEY or not any(map(_beyond_loopback, settings.http.bind)):
        return []
    return [f"http.api_key has fewer than {SHORTEST_KEY} characters, and whoever reaches the port may try to guess it"]


def _problem(finding: _Finding, sources: Mapping[str, Source]) -> Problem:
    told = [key for key in finding.keys if sources.get(key, DEFAULT).kind not in ("default", "preset")]
    key = (told or list(finding.keys))[0]
    source = sources.get(key, DEFAULT)
    text = finding.on_command_line if source.kind in ("option", "preset") else None
    return Problem(source if finding.item is None else source.item(finding.item), text or finding.text, key)


def _values(settings: Settings, wrong: Collection[str]) -> Iterator[_Finding]:
    values = flatten(settings)
    for key, complaint in COMPLAINTS.items():
        value = values[key]
        if key in wrong or value is None:
            continue
        if isinstance(value, tuple):
            for index, item in enumerate(cast("tuple[str, ...]", value)):
                if text := complaint(item):
                    yield _Finding((key,), text, index)
        elif text := complaint(cast("str", value)):
            yield _Finding((key,), text)


def _rule(*keys: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _rules.append((keys, rule))
        return rule

    return register


def _good_binds(settings: Settings) -> Iterator[tuple[int, str, Tcp | Unix]]:
    for index, bind in enumerate(settings.http.bind):
        if bind_problem(bind) is None:
            yield index, bind, parse_bind(bind)


def _beyond_loopback(bind: str) -> bool:
    address = parse_bind(bind)
    return isinstance(address, Tcp) and not address.loopback


@_rule("http.bind")
def _each_bind_is_free(settings: Settings) -> Iterator[_Finding]:
    seen: dict[Tcp | Unix, str] = {}
    for index, bind, address in _good_binds(settings):
        if address in seen:
            yield _Finding(("http.bind",), f"`{bind}` is here twice", index)
        elif isinstance(address, Tcp):
            taken = [text for other, text in seen.items() if isinstance(other, Tcp) and other.overlaps(address)]
            if taken:
                yield _Finding(("http.bind",), f"`{bind}` overlaps `{taken[0]}`", index)
        seen.setdefault(address, bind)


@_rule("http.bind", "http.api_key", "http.api_key_file", "http.allow_unauthenticated")
def _nobody_unauthenticated(settings: Settings) -> Iterator[_Finding]:
    http = settings.http
    if http.api_key is not None or http.allow_unauthenticated:
        return
    for index, bind, _ in _good_binds(settings):
        if _beyond_loopback(bind):
            trouble = f"`{bind}` can be reached from other machines, and no key is set: set"
            fix = "`http.api_key` (or `http.api_key_file`), or say `http.allow_unauthenticated: true`"
            dev_fix = "RUNTIME_API_KEY, or say `--allow-unauthenticated`"
            intent = "if everybody may do everything"
            yield _Finding(
                ("http.bind",), f"{trouble} {fix} {intent}", index, on_command_line=f"{trouble} {dev_fix} {intent}"
            )


@_rule("http.bind", "membridge.serve")
def _both_servers_have_room(settings: Settings) -> Iterator[_Finding]:
    serve = _served(settings)
    for _, bind, address in _good_binds(settings):
        if serve and isinstance(address, Tcp) and serve.overlaps(address):
            yield _Finding(("membridge.serve",), f"`{settings.membridge.serve}` overlaps `{bind}` of `http.bind`")


@_rule(
    "membridge.serve",
    "membridge.serve_key",
    "membridge.serve_key_file",
    "membridge.admin_key",
    "membridge.admin_key_file",
)
def _who_comes_from_elsewhere_can_know_the_key(settings: Settings) -> Iterator[_Finding]:
    membridge, serve = settings.membridge, _served(settings)
    if serve and not serve.loopback and membridge.serve_key is None and membridge.admin_key is None:
        text = f"`{membridge.serve}` can be reached from other machines, and no key is set: set"
        yield _Finding(
            ("membridge.serve",),
            f"{text} `membridge.serve_key` (or `membridge.serve_key_file`), or the admin key (MEMBRIDGE_ADMIN_KEY)",
        )


def _served(settings: Settings) -> Tcp | None:
    """Where a control plane is served, as far as that makes sense by itself."""
    serve = settings.membridge.serve
    address = parse_bind(serve) if serve and not COMPLAINTS["membridge.serve"](serve) else None
    return address if isinstance(address, Tcp) else None


@_rule("http.bind", "http.socket_group")
def _the_group_exists(settings: Settings) -> Iterator[_Finding]:
    group = settings.http.socket_group
    if group is None or not any(isinstance(address, Unix) for _, _, address in _good_binds(settings)):
        return
    try:
        grp.getgrnam(group)
    except KeyError:
        text = f"there is no group `{group}` on this machine: create it, or name another one"
        yield _Finding(("http.socket_group",), text)


@_rule("minio.endpoint", "minio.access_key", "minio.secret_key", "minio.secret_key_file")
def _minio(settings: Settings) -> Iterator[_Finding]:
    minio = settings.minio
    missing = [f"`minio.{name}`" for name in ("access_key", "secret_key") if not getattr(minio, name)]
    if minio.endpoint is not None and missing:
        yield _Finding(("minio.endpoint",), f"an endpoint needs {' and '.join(missing)} as well")


@_rule("backup.memory", "backup.schedule", "minio.endpoint")
def _memory(settings: Settings) -> Iterator[_Finding]:
    if settings.backup.schedule is not None and settings.backup.memory and settings.minio.endpoint is None:
        yield _Finding(("backup.memory",), "the agents' memory is in the object store: it needs `minio.endpoint`")


@_rule("tasks.retry_delay", "tasks.retry_delay_max")
def _retry_delay(settings: Settings) -> Iterator[_Finding]:
    tasks = settings.tasks
    if tasks.retry_delay > tasks.retry_delay_max:
        text = f"a first delay of {tasks.retry_delay:g} s exceeds the longest one, {tasks.retry_delay_max:g} s"
        yield _Finding(("tasks.retry_delay", "tasks.retry_delay_max"), text)
