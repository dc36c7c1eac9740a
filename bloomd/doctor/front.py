"""The way in: our ports, nginx before them, its certificate, and the URL by which others reach us."""

import errno
import socket
import time

import msgspec
import trio

from bloomd.control.layout import count
from bloomd.doctor import proxy
from bloomd.doctor.case import Case
from bloomd.doctor.fact import SECONDS
from bloomd.doctor.finding import Found, Skip, error, ok, warning
from bloomd.doctor.proxy import ANSWER_LIMIT, CLAIMED, CLIENT, HEALTH, NO_ADDRESS
from bloomd.errors import Unavailable, one_line
from bloomd.exchange import Answer, exchange
from bloomd.settings import Tcp, parse_bind

DAY = 86400

# certbot renews thirty days before the end.
RENEWED_DAYS = 21

# Where a server that listens on all interfaces is reached on this machine.
_HERE = {None: "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


class Health(msgspec.Struct, frozen=True):
    """What of a health answer counts here."""

    service: str
    client: str | None = None


async def port(case: Case) -> Found:
    """Our ports are ours, or free as long as no daemon runs."""
    addresses = [address for bind in case.settings.http.bind if isinstance(address := parse_bind(bind), Tcp)]
    if not addresses:
        raise Skip("http.bind has no port, only Unix sockets")
    for address in addresses:
        if trouble := await _trouble_with(address, case):
            return trouble
    ports = " and ".join(str(address.port) for address in addresses)
    return ok(f"port {ports} can be used" if case.none_runs else f"bloomd answers on port {ports}")


def nginx_answers(case: Case) -> Found:
    """nginx answers on this machine, and gives bloomd's answers."""
    trouble = case.front.trouble
    if trouble:
        return error(f"nginx does not answer: {one_line(trouble)}", "nginx -t, then rc-service nginx restart")
    answer = case.front.value
    if _health(answer):
        return ok("nginx answers for bloomd")
    if answer.status in (502, 503, 504):
        case.status.need()  # while none runs, that is as it should be
        return error(
            f"nginx answers {answer.status}: it does not reach bloomd",
            "usermod -a -G bloomd-web nginx (Debian: www-data), restart nginx, and see /var/log/nginx/error.log",
        )
    return error(
        f"what answers at {case.settings.http.public_url} on this machine is not bloomd (status {answer.status})",
        "remove nginx's default server, and give nginx/bloomd.conf its server_name",
    )


async def nginx_client_address(case: Case) -> Found:
    """nginx tells bloomd who the client is, and takes nobody's word for it."""
    health = _health(case.front.value)
    if health is None or health.client is None:
        raise Skip("nginx gives no answer of bloomd")
    if health.client == CLIENT:
        return ok("nginx passes the client's address")
    fix = "in nginx: proxy_set_header X-Forwarded-For $remote_addr;"
    if health.client == CLAIMED:
        appended = _health(await proxy.health(case.settings.http, NO_ADDRESS))
        if appended and appended.client == CLIENT:
            return warning(
                "nginx appends to what a client claims: safe unless the client is itself in http.trusted_proxies", fix
            )
        return error("nginx passes on whatever address a client claims to have", fix)
    return error(
        f"bloomd takes {health.client} for a client of nginx with the address {CLIENT}",
        f"{fix} and name nginx in http.trusted_proxies",
    )


def nginx_certificate(case: Case) -> Found:
    """The certificate counts, and will do for a while."""
    renew = "certbot renew && nginx -s reload"
    trouble = case.certificate.trouble
    if isinstance(trouble, Unavailable):
        raise Skip("nobody shows a certificate")
    if trouble:
        return error(one_line(trouble), renew)
    days = int((case.certificate.value - time.time()) / DAY)
    text = f"the certificate expires in {count(days, 'day')}"
    return ok(text) if days > RENEWED_DAYS else warning(f"{text}, and nobody has renewed it", renew)


async def public_url(case: Case) -> Found:
    """The URL that workers are given leads here, by its name."""
    url = case.settings.http.public_url
    if url is None:
        raise Skip("http.public_url is not set")
    if case.certificate.troubled or case.front.troubled or (case.front.known and not _health(case.front.value)):
        raise Skip("nginx, or its certificate, is in trouble")
    try:
        answer = await exchange("GET", url + HEALTH, who=url, timeout=SECONDS, limit=ANSWER_LIMIT)
    except Unavailable as trouble:
        # Some routers do not let a machine inside reach its own address outside.
        return warning(
            f"http.public_url cannot be reached from this machine: {one_line(trouble)}",
            "correct its DNS entry or http.public_url, unless others do reach it",
        )
    if not _health(answer):
        case.status.need()  # while none runs, others answer for it
        return error(
            f"{url} is answered, and not by bloomd (status {answer.status})",
            "correct http.public_url, or the proxy behind it",
        )
    return ok(f"{url} is answered")


async def _trouble_with(address: Tcp, case: Case) -> Found | None:
    host = _HERE.get(address.host, address.host) or ""
    url = f"http://[{host}]:{address.port}" if ":" in host else f"http://{host}:{address.port}"
    fix = f"ss -ltnp 'sport = :{address.port}' shows who has it; stop that, or change http.bind"
    try:
        answer = await exchange("GET", url + HEALTH, who=url, timeout=SECONDS / 2, limit=ANSWER_LIMIT)
    except Unavailable as trouble:
        if case.none_runs:
            return await trio.to_thread.run_sync(_cannot_be_bound, address, fix)
        return error(f"the daemon runs, and does not answer on port {address.port}: {one_line(trouble)}", fix)
    if not _health(answer):
        return error(f"port {address.port} is taken by something that is not bloomd", fix)
    if case.none_runs:
        return error(f"port {address.port} is taken by another BLOOM Runtime, such as the one of Node.js", fix)
    return None


def _cannot_be_bound(address: Tcp, fix: str) -> Found | None:
    """What keeps a daemon from this port. A port that is bound and not listened on is in nobody's way."""
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(family[4])
    except OSError as trouble:
        if trouble.errno == errno.EADDRINUSE:
            return error(f"port {address.port} is taken by something that is not bloomd", fix)
        if trouble.errno == errno.EACCES:
            raise Skip(f"only root may use port {address.port}") from None
        return error(f"{address.host}:{address.port} cannot be listened on: {trouble.strerror}", "correct http.bind")
    return None


def _health(answer: Answer) -> Health | None:
    """What bloomd said of itself; None when it was not bloomd that spoke."""
    try:
        health = msgspec.json.decode(answer.body, type=Health)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return health if answer.status == 200 and health.service == "bloom-runtime" else None
