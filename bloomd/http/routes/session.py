"""The page's sign-in: an API key for a cookie, who is signed in, and the end of it."""

from typing import Annotated, Literal

import msgspec
from litestar import Response, delete, get, post
from msgspec import Meta

from bloomd import __version__
from bloomd.errors import Unavailable
from bloomd.http.access import is_off, is_secure, unauthorized
from bloomd.http.answers import Json
from bloomd.http.bodies import read
from bloomd.http.problems import Problem
from bloomd.http.requests import Req, caller, node_of
from bloomd.http.session import LIFE_MS, begin, key_of, set_cookie, signing_secret

UNKNOWN = "API keys and sessions cannot be checked yet: PostgreSQL has been away since the start of bloomd"


class SignIn(msgspec.Struct, frozen=True):
    """What the form sends."""

    key: Annotated[str, Meta(min_length=1, max_length=4096)]


class Standing(msgspec.Struct, frozen=True):
    """Whom the page works for, and where."""

    authentication: Literal["on", "off"]
    """Off when there is no key: whoever reaches the port may do everything."""
    actor: str | None
    """The name of the key; null for who has to sign in first."""
    expires_at: int | None
    """When one has to sign in again; null without a session."""
    node: str
    version: str
    public_url: str | None
    """Where other machines reach this server, as it is configured."""


class SignedOut(msgspec.Struct, frozen=True):
    ended: bool


@get("/api/runtime/session", summary="Who is signed in")
async def show(request: Req) -> Standing:
    """Anybody may ask, to learn whether a key is needed."""
    by = caller(request)
    if not (by.authenticated or node_of(request).keys.known):
        raise Unavailable(UNKNOWN)
    return _standing(request, by.actor if by.authenticated else None, by.session.expires_at if by.session else None)


@post(
    "/api/runtime/session",
    summary="Sign in on the page",
    status_code=200,
    opt={"body": SignIn, "refuses": (401, 409)},
)
async def sign_in(request: Req) -> Response[Standing]:
    """An API key, for a cookie that stands for it for 12 hours, until the sign-out, or until the key is removed."""
    node, client = node_of(request), caller(request).client
    http, keys = node.settings.http, node.keys
    if is_off(http, keys):
        raise Problem(409, "No API key is set, so there is nothing to sign in with: all is open", type="conflict")
    if not keys.known:
        raise Unavailable(UNKNOWN)
    attempts = request.app.state["sign_ins"]
    attempts.spend(client)  # before what is offered is read: who is over the limit sends nothing
    offered = await read(request, SignIn)
    key = key_of(offered.key, http, keys)
    if key is None:
        raise unauthorized("This is not an API key of this server; `bloomd-ctl key add NAME` makes one")
    secret = signing_secret(http, keys)
    if secret is None:
        raise Unavailable("Nobody can sign in yet: the secret for it has not been read from PostgreSQL")
    hash, actor = key
    keys.note_use(hash)
    session, value = begin(secret, hash, actor)
    await keys.sessions.note_begin(session.id, actor=actor, client=client)
    attempts.forgive(client)
    cookie = set_cookie(value, seconds=LIFE_MS // 1000, secure=_is_secure(request))
    return Json(_standing(request, actor, session.expires_at), headers={"set-cookie": cookie}, status_code=200)


@delete("/api/runtime/session", summary="Sign out", status_code=200)
async def sign_out(request: Req) -> Response[SignedOut]:
    """Whoever has a copy of the cookie is signed out, too."""
    by = caller(request)
    cookie = {"set-cookie": set_cookie("", seconds=0, secure=_is_secure(request))}
    if by.session is not None:
        try:
            await node_of(request).keys.end_session(by.session.id, by.session.expires_at, actor=by.actor)
        except Unavailable as error:
            detail = f"This browser has forgotten the session; a copy of its cookie is good as before: {error}"
            raise Problem(503, detail, type="unavailable", headers=cookie) from error
    return Json(SignedOut(ended=by.session is not None), headers=cookie, status_code=200)


def _is_secure(request: Req) -> bool:
    return is_secure(request.scope, node_of(request).settings.http.trusted_proxies)  # pyright: ignore[reportArgumentType]


def _standing(request: Req, actor: str | None, expires_at: int | None) -> Standing:
    node = node_of(request)
    return Standing(
        authentication="off" if is_off(node.settings.http, node.keys) else "on",
        actor=actor,
        expires_at=expires_at,
        node=node.name,
        version=__version__,
        public_url=node.settings.http.public_url if actor else None,
    )


HANDLERS = [show, sign_in, sign_out]
