"""From all that was told to the settings in force."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bloomd.settings import check, env_file, environment, notices
from bloomd.settings.files import Unreadable, read_text
from bloomd.settings.keys import KEYS, build
from bloomd.settings.layers import Entry, Layer, beside, overlay, read_secret_files, told
from bloomd.settings.model import Settings
from bloomd.settings.problems import DEFAULT, Problem, SettingsError, Source
from bloomd.settings.stored import lay_over
from bloomd.settings.values import bind_problem
from bloomd.settings.yaml_source import read_yaml

# URLs are kept without a slash at their end, so that paths can be appended.
_URLS = ("http.public_url", "membridge.server_url", "worker.server")


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings in force, where each was told, and what an operator should know about them."""

    settings: Settings
    sources: Mapping[str, Source]
    warnings: tuple[str, ...]
    _base: Layer = field(repr=False, compare=False)
    _notices: list[str] = field(repr=False, compare=False)
    """The warnings that do not depend on the database."""

    @property
    def own_admin_key(self) -> str | None:
        """Membridge's admin key as files and environment tell it, whatever was set through the API."""
        entry = self._base.get("membridge.admin_key")
        return entry.value if entry is not None and isinstance(entry.value, str) else None

    def with_stored(self, rows: Mapping[str, str]) -> "Loaded":
        """The same with other rows of the database; nothing is read again.

        Never fails: a row that cannot be used is left out with a warning.
        """
        return _assemble(self._base, rows, self._notices)


def load(
    path: Path | None,
    *,
    environ: Mapping[str, str],
    preset: Mapping[str, object] | None = None,
    options: Mapping[str, object] | None = None,
    stored: Mapping[str, str] | None = None,
) -> Loaded:
    """Read and check everything.

    From the weakest to the strongest: the model's defaults, `preset` (dotted keys), the YAML file at `path`, its
    env_file, the environment, `stored` (rows of the database), `options` (dotted keys, from the command line).

    Raises SettingsError with all problems.
    """
    preset_layer, problems = told(preset, "preset")
    option_layer, wrong = told(options, "option")
    problems += wrong
    file_layer: Layer = {}
    file_was_read = True
    if path is not None:
        file_layer, wrong, file_was_read = read_yaml(path)
        problems += wrong

    layers = (option_layer, file_layer, preset_layer)
    named = next((layer["env_file"] for layer in layers if "env_file" in layer), None)
    variables, wrong = _env_file(named)
    problems += wrong
    known = environment.known(environ, variables)
    environment_layer, wrong = environment.translate(known)
    problems += wrong

    base, wrong = overlay([preset_layer, file_layer, *_by_kind(environment_layer), option_layer])
    problems += wrong
    problems += read_secret_files(base)
    warnings = notices.without_half_a_minio(base)
    port, wrong = environment.port(known)
    problems += wrong
    if port is not None and "http.bind" not in option_layer:
        warnings += _replace_port(base, port)
    for name in _URLS:
        if (entry := base.get(name)) and isinstance(entry.value, str):
            base[name] = replace(entry, value=entry.value.rstrip("/"))

    sources = _sources(base)
    problems += check.check(
        _settings(base),
        sources,
        wrong={problem.key for problem in problems if problem.key},
        uncertain=_uncertain(problems, sources, file_was_read=file_was_read),
    )
    if problems:
        raise SettingsError(problems)
    env_file_layer, _ = environment.translate(environment.known({}, variables))
    warnings += notices.exposed([file_layer, env_file_layer, preset_layer, option_layer])
    return _assemble(base, stored or {}, warnings)


def _env_file(named: Entry | None) -> tuple[Mapping[str, env_file.Variable], list[Problem]]:
    if named is None or named.value is None:
        return {}, []
    path = beside(named)
    try:
        return env_file.parse(read_text(path), path)
    except Unreadable as error:
        return {}, [Problem(named.source, f"{path}: {error}", "env_file")]


def _by_kind(layer: Layer) -> list[Layer]:
    """The values of the env_file and those of the environment as two layers."""
    return [
        {name: entry for name, entry in layer.items() if entry.source.kind == kind}
        for kind in ("env_file", "environment")
    ]


def _replace_port(base: Layer, port: Entry) -> list[str]:
    http = _settings(base).http
    if any(bind_problem(bind) for bind in http.bind):
        return []  # to be reported where they were told
    binds = environment.with_port(http.bind, port.value, key_is_set=http.api_key is not None)
    told = base.get("http.bind")
    base["http.bind"] = Entry(binds, port.source)
    return notices.port_replaces(told, base["http.bind"]) if told else []


def _sources(layer: Layer) -> dict[str, Source]:
    return {name: layer[name].source if name in layer else DEFAULT for name in KEYS}


def _settings(layer: Layer) -> Settings:
    return build({name: entry.value for name, entry in layer.items()})


def _uncertain(problems: list[Problem], sources: Mapping[str, Source], *, file_was_read: bool) -> set[str]:
    """The keys that a broken file may tell, and nobody stronger does."""
    keys: set[str] = set()
    if not file_was_read:
        keys = set(KEYS)
    elif any(
        problem.key == "env_file" or (problem.source.kind == "env_file" and not problem.key) for problem in problems
    ):
        keys = set(environment.VARIABLES.values())
    return {key for key in keys if sources[key].kind in ("default", "preset", "file")}


def _assemble(base: Layer, rows: Mapping[str, str], notices: list[str]) -> Loaded:
    layer, warnings = lay_over(base, rows)
    settings = _settings(layer)
    about_keys = (*check.without_key(settings), *check.short_key(settings))
    return Loaded(settings, _sources(layer), (*about_keys, *notices, *warnings), base, notices)
