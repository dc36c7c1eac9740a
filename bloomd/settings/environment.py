"""The environment of today's runtime, as keys of ours.

Most variables are one key each. The others say something that a key says differently: PORT and MINIO_PORT are a part
of an address, and NODE_ENV is about more than logs there and about nothing else here.
"""

from collections.abc import Callable, Mapping

from bloomd.settings.env_file import Variable
from bloomd.settings.keys import KEYS
from bloomd.settings.layers import Entry, Layer
from bloomd.settings.problems import Problem, Source

# Each variable and the key that it sets.
VARIABLES: Mapping[str, str] = {
    "DATABASE_URL": "database.url",
    "PORT": "http.bind",
    "RUNTIME_API_KEY": "http.api_key",
    "SESSION_SECRET": "http.session_secret",
    "MEMBRIDGE_SERVER_URL": "membridge.server_url",
    "MEMBRIDGE_ADMIN_KEY": "membridge.admin_key",
    "MEMBRIDGE_AGENT_KEY": "membridge.agent_key",
    "MINIO_ENDPOINT": "minio.endpoint",
    "MINIO_PORT": "minio.endpoint",
    "MINIO_ARTIFACT_BUCKET": "minio.bucket",
    "MINIO_ACCESS_KEY": "minio.access_key",
    "MINIO_SECRET_KEY": "minio.secret_key",
    "MINIO_USE_SSL": "minio.secure",
    "NODE_ENV": "log.format",
}

# What some of them mean beyond the value of that key.
MEANINGS: Mapping[str, str] = {
    "PORT": "this port in the place of all TCP addresses: on all interfaces with a key, on 127.0.0.1 without one",
    "MINIO_PORT": "the port of MINIO_ENDPOINT",
    "NODE_ENV": "`production` means `json`",
}


def known(environ: Mapping[str, str], env_file: Mapping[str, Variable]) -> dict[str, Variable]:
    """The variables that mean something here: the process's own before the file's; an empty one is not set."""
    own = {name: Variable(value, Source("environment", name=name)) for name, value in environ.items()}
    both = [*env_file.items(), *((name, variable) for name, variable in own.items() if variable.value)]
    return {name: variable for name, variable in both if name in VARIABLES and variable.value}


def translate(variables: Mapping[str, Variable]) -> tuple[Layer, list[Problem]]:
    """The variables as keys. PORT is missing here: what it means depends on other keys (`port`, `with_port`)."""
    layer: Layer = {}
    problems: list[Problem] = []
    for name, variable in variables.items():
        if name in ("PORT", "MINIO_PORT") or (name == "NODE_ENV" and variable.value != "production"):
            continue
        key = VARIABLES[name]
        try:
            raw = _READ[name](variable.value) if name in _READ else variable.value
            layer[key] = Entry(KEYS[key].convert(raw), variable.source)
        except ValueError as error:
            problems.append(Problem(variable.source, str(error), key))
    problems += _join_minio_port(layer, variables)
    return layer, problems


def port(variables: Mapping[str, Variable]) -> tuple[Entry | None, list[Problem]]:
    """PORT as a number."""
    if (variable := variables.get("PORT")) is None:
        return None, []
    try:
        return Entry(_port(variable.value), variable.source), []
    except ValueError as error:
        return None, [Problem(variable.source, str(error), "http.bind")]


def with_port(binds: tuple[str, ...], port: object, *, key_is_set: bool) -> tuple[str, ...]:
    """The binds with this port in the place of all TCP ones; those on Unix sockets stay.

    As today, it is open to all interfaces; without a key, only to this machine.
    """
    return (f":{port}" if key_is_set else f"127.0.0.1:{port}", *(bind for bind in binds if bind.startswith("unix:")))


def _join_minio_port(layer: Layer, variables: Mapping[str, Variable]) -> list[Problem]:
    endpoint, variable = layer.get("minio.endpoint"), variables.get("MINIO_PORT")
    if endpoint is None or variable is None:
        return []
    try:
        number = _port(variable.value)
    except ValueError as error:
        return [Problem(variable.source, str(error), "minio.endpoint")]
    host = str(endpoint.value)
    if ":" not in host:
        layer["minio.endpoint"] = Entry(f"{host}:{number}", endpoint.source)
    return []


def _port(text: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= 65535:
        return int(text)
    raise ValueError("expected a port number from 1 to 65535")


def _switch(text: str) -> bool:
    switches = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() in switches:
        return switches[text.lower()]
    raise ValueError("expected true or false")


_READ: Mapping[str, Callable[[str], object]] = {"MINIO_USE_SSL": _switch, "NODE_ENV": lambda _: "json"}
