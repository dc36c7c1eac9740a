"""nginx/bloomd-tls.conf in a real nginx: the redirect, the certificate and its renewal."""

import os
import shlex
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
from nginx_process import FILES, NAME, Nginx
from servers import eventually
from upstream import Reply, Upstream

from bloomd.settings.model import Http


@dataclass
class Secure:
    """A running nginx with TLS and what is behind it."""

    nginx: Nginx
    upstream: Upstream
    authority: trustme.CA
    trust: ssl.SSLContext

    def url(self, path: str, *, plain: bool = False) -> str:
        scheme, port = ("http", self.nginx.plain_port) if plain else ("https", self.nginx.port)
        return f"{scheme}://{NAME}:{port}{path}"

    def client(self) -> httpx.Client:
        return httpx.Client(verify=self.trust, trust_env=False, timeout=10, follow_redirects=True)

    def handshake(self, *protocols: str) -> tuple[str | None, int]:
        """The protocol that both agree to, and the serial number of the certificate."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        context.set_alpn_protocols(protocols)
        with (
            socket.create_connection(("127.0.0.1", self.nginx.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=NAME) as secure,
        ):
            certificate = secure.getpeercert()
            assert certificate
            return secure.selected_alpn_protocol(), int(str(certificate["serialNumber"]), 16)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    directory, authority = tmp_path_factory.mktemp("nginx-tls"), trustme.CA()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    through = directory / "bloomd.sock"
    with (
        Upstream(through) as upstream,
        Nginx(directory, through, leaf=authority.issue_cert(NAME)) as nginx,
    ):
        yield Secure(nginx, upstream, authority, trust)


def test_the_redirect_keeps_the_method_the_body_and_the_query(secure: Secure) -> None:
    """Of the largest body, too: nginx does not judge it where it only redirects."""
    body = b"x" * Http().max_body_bytes
    with secure.client() as client:
        answer = client.post(secure.url("/api/runtime/llm-tasks?x=%20y", plain=True), content=body)
    assert (answer.status_code, [each.status_code for each in answer.history]) == (200, [308])
    request = secure.upstream.seen[-1]
    assert (request.method, request.path, request.body == body) == ("POST", "/api/runtime/llm-tasks?x=%20y", True)
    assert request.headers.get_all("x-forwarded-proto") == ["https"]


def test_the_redirect_leads_to_this_machine_whatever_host_is_asked_for(secure: Secure) -> None:
    with secure.client() as client:
        answer = client.get(secure.url("/", plain=True), headers={"Host": "elsewhere.example"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (308, secure.url("/"))


def test_certbot_shows_by_plain_http_that_it_has_the_name(secure: Secure) -> None:
    challenge = secure.nginx.webroot / ".well-known/acme-challenge/token"
    challenge.parent.mkdir(parents=True)
    challenge.write_text("token.thumbprint")
    with secure.client() as client:
        answer = client.get(secure.url("/.well-known/acme-challenge/token", plain=True))
    assert (answer.text, answer.history) == ("token.thumbprint", [])


def test_a_browser_is_told_to_come_by_tls_only(secure: Secure) -> None:
    """Beside all other headers, and also where it is nginx that answers."""
    secure.upstream.replies["/gone"] = None
    secure.upstream.replies["/away"] = Reply(status=500)
    with secure.client() as client:
        for path in ("/", "/api/runtime/events", "/gone", "/away"):
            headers = client.get(secure.url(path)).headers
            assert headers.get_list("strict-transport-security") == ["max-age=31536000"], path
            assert headers.get_list("x-content-type-options") == ["nosniff"]
        redirect = client.get(secure.url("/", plain=True), follow_redirects=False)
    assert "strict-transport-security" not in redirect.headers  # it counts for nothing there


def test_http_2_is_spoken_and_http_1_too(secure: Secure) -> None:
    assert secure.handshake("h2", "http/1.1")[0] == "h2"
    assert secure.handshake("http/1.1")[0] == "http/1.1"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_nothing_below_tls_1_2_is_spoken(tmp_path: Path) -> None:
    """Even where OpenSSL and the main file of nginx would allow it."""
    authority, lax = trustme.CA(), "ALL:@SECLEVEL=0"
    nginx = Nginx(tmp_path, tmp_path / "bloomd.sock", leaf=authority.issue_cert(NAME))
    for name, old, new in (
        ("nginx.conf", "http {\n", "http {\n    ssl_protocols TLSv1.1 TLSv1.2;\n"),
        ("bloomd.conf", "ssl_ciphers ", f"ssl_ciphers {lax}; # "),
    ):
        text = (tmp_path / name).read_text()
        assert text.count(old) == 1
        (tmp_path / name).write_text(text.replace(old, new))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_ciphers(lax)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with nginx, pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        _shake_hands(context, nginx.port)


def test_a_cipher_that_does_not_authenticate_what_it_encrypts_is_not_taken(secure: Secure) -> None:
    context = ssl.create_default_context()
    secure.authority.configure_trust(context)
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA256")  # CBC
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        _shake_hands(context, secure.nginx.port)


def _shake_hands(context: ssl.SSLContext, port: int) -> None:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=NAME),
    ):
        pass


def test_the_renewal_hook_has_the_new_certificate_served(secure: Secure, tmp_path: Path) -> None:
    before = secure.handshake()[1]
    secure.nginx.certify(secure.authority.issue_cert(NAME))
    assert secure.handshake()[1] == before
    done = _hook(secure, tmp_path)
    assert done.returncode == 0, done.stderr
    eventually(lambda: secure.handshake()[1] != before)


def test_the_renewal_hook_reloads_nothing_that_nginx_would_not_take(secure: Secure, tmp_path: Path) -> None:
    key = secure.nginx.directory / "privkey.pem"
    whole = key.read_bytes()
    key.write_bytes(b"")
    try:
        done = _hook(secure, tmp_path)
    finally:
        key.write_bytes(whole)
    assert done.returncode != 0
    assert "privkey.pem" in done.stderr
    assert secure.handshake()[1]


def _hook(secure: Secure, directory: Path) -> "subprocess.CompletedProcess[str]":
    """As certbot runs it, where `nginx` is this one."""
    nginx = directory / "nginx"
    nginx.write_text(f'#!/bin/sh\nexec {shlex.join(secure.nginx.command)} "$@"\n')
    nginx.chmod(0o755)
    return subprocess.run(
        [FILES / "renewal-hook"], capture_output=True, text=True, check=False, timeout=30,
        env={**os.environ, "PATH": f"{directory}:/usr/bin:/bin"},
    )  # fmt: skip
