"""Connection strings: read without ever quoting them, completed, and split into the attempts that connecting makes."""

import random
import socket

import psycopg
import trio
from psycopg._conninfo_utils import get_param, get_param_def, split_attempts
from psycopg.abc import ConnDict
from psycopg.conninfo import conninfo_to_dict, make_conninfo

EXAMPLE = "postgresql://user:password@host:5432/name"
ENCODE = "characters such as / @ : ? # % in the user or the password must be percent-encoded"


class BadConninfo(psycopg.ProgrammingError):
    """The connection string is not one. libpq's own text would quote it, password and all, so it is left out."""


def parse(conninfo: str) -> ConnDict:
    """The parameters of a URL or key=value string.

    Raises:
        BadConninfo: it cannot be read, or it can only be read by taking a part of the password for something else.
    """
    try:
        params = conninfo_to_dict(conninfo)
    except (psycopg.Error, UnicodeError):
        raise BadConninfo(f"the database URL cannot be read; it should look like {EXAMPLE}, where {ENCODE}") from None
    # A password with a bare / or @ moves its own rest into the host, the port or the name of the database. Connecting
    # would then fail with an error that quotes it.
    ports = str(get_param(params, "port") or "").split(",")
    misread = any(port and not port.isdecimal() for port in ports) or any(
        "@" in str(params.get(key) or "") for key in ("host", "dbname")
    )
    if misread:
        raise BadConninfo(f"the database URL has no valid host, port and name; {ENCODE}")
    return params


def complete(
    conninfo: str, *, application_name: str, statement_timeout: float | None = None, read_only: bool = False
) -> str:
    """The string with our defaults in it. What it, or its environment, says itself has precedence."""
    params = parse(conninfo)
    params["fallback_application_name"] = application_name
    if statement_timeout is not None:
        theirs = get_param(params, "options") or ""
        # The server takes the last of several: theirs.
        params["options"] = f"-c statement_timeout={max(1, round(statement_timeout * 1000))} {theirs}".strip()
    if read_only:
        params["options"] = f"{get_param(params, 'options') or ''} -c default_transaction_read_only=on".strip()
    return make_conninfo("", **params)


def with_database(conninfo: str, dbname: str) -> str:
    """The same server, another database."""
    return make_conninfo("", **{**parse(conninfo), "dbname": dbname})


def where(params: ConnDict) -> str:
    """One attempt's target, for a person: `host:port`, or the socket's path."""
    host = get_param(params, "host") or get_param(params, "hostaddr") or "the default socket"
    port = get_param(params, "port") or "5432"
    return f"{host}/.s.PGSQL.{port}" if host.startswith("/") else f"{host}:{port}"


async def attempts(params: ConnDict) -> list[ConnDict]:
    """One set of parameters for each address to try, in order.

    libpq could try several hosts by itself, but it would resolve their names while everything else waits, and it has no
    time limit for each when it is not blocking.

    Raises:
        psycopg.OperationalError: none of the host names could be resolved.
    """
    prefer_standby = get_param(params, "target_session_attrs") == "prefer-standby"
    if prefer_standby:
        params = {**params, "target_session_attrs": "any"}
    found: list[ConnDict] = []
    unresolved: list[str] = []
    for attempt in split_attempts(params):
        try:
            found.extend(await _resolved(attempt))
        except OSError as error:
            unresolved.append(f"the host name {get_param(attempt, 'host')!r} cannot be resolved: {error.strerror}")
    if not found:
        raise psycopg.OperationalError("; ".join(unresolved))
    if get_param(params, "load_balance_hosts") == "random":
        random.shuffle(found)
    standbys = [{**attempt, "target_session_attrs": "standby"} for attempt in found] if prefer_standby else []
    return standbys + found


async def _resolved(params: ConnDict) -> list[ConnDict]:
    host = get_param(params, "host")
    if not host or host.startswith(("/", "@")) or get_param(params, "hostaddr"):
        return [params]
    default = get_param_def("port")
    port = get_param(params, "port") or (default and default.compiled) or "5432"
    # In a thread, unless it is an address already.
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [{**params, "hostaddr": str(address[0])} for *_, address in found]
