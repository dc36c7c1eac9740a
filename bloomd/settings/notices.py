"""What sources may say and still deserves to be told, at every start and in `status`."""

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from bloomd.settings.binds import Tcp, parse_bind
from bloomd.settings.conninfo import passwords
from bloomd.settings.files import readable_by_everybody
from bloomd.settings.keys import SECRETS
from bloomd.settings.layers import Entry, Layer, beside
from bloomd.settings.problems import Source


def port_replaces(told: Entry, port: Entry) -> list[str]:
    """That the binds (`port`, with PORT in them) are not those that somebody told, where that makes a difference."""
    [now] = _tcp(port)
    before = _tcp(told)
    if before == [now]:
        return []
    does = f"replaces {' and '.join(_text(bind) for bind in before)} of" if before else "adds to"
    where = told.source.where or told.source.kind
    on = "all interfaces" if now.host is None else now.host
    return [f"{_variable(port.source)} {does} http.bind ({where}): bloomd listens on {on}, port {now.port}"]


def without_half_a_minio(layer: Layer) -> list[str]:
    """Take the endpoint away that a variable told and nobody told the keys for: today's runtime ignores it as well.

    In the YAML file it would be a mistake.
    """
    endpoint = layer.get("minio.endpoint")
    if endpoint is None or endpoint.source.kind not in ("env_file", "environment"):
        return []
    names = {"minio.access_key": "MINIO_ACCESS_KEY", "minio.secret_key": "MINIO_SECRET_KEY"}
    missing = [name for key, name in names.items() if key not in layer or not layer[key].value]
    if not missing:
        return []
    del layer["minio.endpoint"]
    text = f"is set without {' and '.join(missing)}: MinIO counts as not configured"
    return [f"{_variable(endpoint.source)} {text}"]


def exposed(layers: Iterable[Layer]) -> list[str]:
    """The files that hold a secret, in force or not, and that everybody on this machine may read."""
    files = dict.fromkeys(file for layer in layers for file in _files_of_secrets(layer))
    return [
        f"everybody on this machine may read the secrets in {file}; run: chmod o-rwx {shlex.quote(str(file))}"
        for file in files
        if readable_by_everybody(file)
    ]


def _files_of_secrets(layer: Layer) -> Iterator[Path]:
    for secret in SECRETS:
        entry, in_file = layer.get(secret), layer.get(f"{secret}_file")
        if (
            entry
            and entry.value
            and entry.source.file
            and (secret != "database.url" or any(passwords(str(entry.value))))
        ):
            yield Path(entry.source.file)
        if in_file and in_file.value:
            yield beside(in_file)


def _tcp(entry: Entry) -> list[Tcp]:
    addresses = [parse_bind(bind) for bind in cast("tuple[str, ...]", entry.value)]
    return [address for address in addresses if isinstance(address, Tcp)]


def _text(bind: Tcp) -> str:
    return f"[{bind.host}]:{bind.port}" if ":" in (bind.host or "") else f"{bind.host or ''}:{bind.port}"


def _variable(source: Source) -> str:
    return f"{source.name} ({source.where})" if source.file else str(source.name)
