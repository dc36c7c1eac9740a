"""One call to a worker's agent (contract, section 6): the agent key, where it may go, and what comes back.

The key goes to the address of this one call and nowhere else: `networks.py` checks what is connected to, and a redirect
is an answer like any other. Whether a call was heard decides what a failed push costs, so `NotReached` is told apart
from every other failure: only then is it certain that the agent knows nothing of it.
"""

import json
from functools import partial
from typing import Any, cast

import httpcore
import httpx
import msgspec
import trio

from bloomd.errors import Unavailable, one_line
from bloomd.exchange import MIB, exchange
from bloomd.membridge.networks import connect

KEY_HEADER = "X-MEMBRIDGE-AGENT"

# Who has not taken the connection by now is away. A push may wait an hour for its answer, but not for this.
CONNECT_SECONDS = 10.0


class NotReached(Unavailable):
    """The connection could not be made; nothing was sent."""


class AgentAnswer(msgspec.Struct, frozen=True):
    """What an agent said, whatever it was."""

    status: int
    said: dict[str, Any]
    """`{}` when the body is no JSON object. Its strings are as they came, with NUL and lone surrogates if it be."""


async def call(
    method: str,
    url: str,
    path: str,
    *,
    key: str | None,
    networks: tuple[str, ...],
    timeout: float,
    body: object | None = None,
    limit: int = 8 * MIB,
) -> AgentAnswer:
    """Ask the agent at this URL once, and read its answer.

    Args:
        url: the worker's, to which the path is appended.
        key: the agent key; the header is left out without one.
        networks: `workers.allowed_networks`.
        timeout: seconds for all of it.
        body: what is sent as JSON.
        limit: bytes that the answer may have.

    Raises:
        NotReached: nobody took the connection, or it must not be made.
        Unavailable: there was no answer, or none that can be used; the agent may have begun all the same.
    """
    headers = {KEY_HEADER: key} if key else {}
    content = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        content = msgspec.json.encode(body)
    connected = False

    async def reach(host: str, port: int) -> httpcore.AsyncNetworkStream:
        nonlocal connected
        try:
            with trio.fail_after(CONNECT_SECONDS):
                stream = await connect(host, port, networks=networks)
        except trio.TooSlowError as error:
            raise NotReached(f"the agent: no connection within {CONNECT_SECONDS:g} s") from error
        connected = True
        return stream

    try:
        answer = await exchange(
            method,
            url.rstrip("/") + path,
            who="the agent",
            timeout=timeout,
            limit=limit,
            headers=headers,
            content=content,
            connect=reach,
        )
    except Unavailable as error:
        if not connected or isinstance(error.__cause__, httpx.ConnectError):  # the latter is a failed TLS handshake
            raise NotReached(one_line(error)) from error
        raise
    # In a thread when it is long: nobody else should have to wait for eight megabytes.
    said = (
        await trio.to_thread.run_sync(partial(_object, answer.body)) if len(answer.body) > MIB else _object(answer.body)
    )
    return AgentAnswer(answer.status, said)


def _object(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", said) if isinstance(said, dict) else {}
