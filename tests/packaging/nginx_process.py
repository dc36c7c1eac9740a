"""A real nginx as a child process, with what is in nginx/ under other addresses and paths."""

import os
import subprocess
from pathlib import Path
from typing import Self

import trustme
from servers import eventually, free_port
from tools import require
from upstream import accepts

FILES = Path(__file__).parents[2] / "nginx"

# The name that stands for this machine's in bloomd-tls.conf, and the one that tests have a certificate for.
EXAMPLE, NAME = "bloom.example.org", "localhost"

# nginx leaves root's rights, and the tests' directories are closed to others.
MAIN = """\
{user}
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include bloomd.conf;
}}
"""


class Nginx:
    """Serves on free ports of loopback what is behind the sockets of one or two nodes; keeps its files in `directory`.

    With a certificate it does so as bloomd-tls.conf says: `port` is then for TLS, and `plain_port` redirects to it.
    """

    def __init__(self, directory: Path, node: Path, other: Path | None = None, *, leaf: trustme.LeafCert | None = None):
        self.directory = directory
        self.port = free_port()
        self.plain_port = free_port() if leaf else self.port
        self.access_log = directory / "access.log"
        self.command = [require("nginx"), "-p", f"{directory}/", "-c", f"{directory}/nginx.conf", "-e", "stderr"]
        self.error_log = directory / "error.log"
        self.webroot = directory / "webroot"
        (directory / "bloomd.conf").write_text(self._server(tls=leaf is not None))
        (directory / "bloomd-locations.conf").write_text(self._elsewhere("bloomd-locations.conf"))
        (directory / "bloomd-upstream.conf").write_text(self._upstream(node, other))
        (directory / "nginx.conf").write_text(MAIN.format(user="user root;" if os.geteuid() == 0 else ""))
        if leaf:
            self.certify(leaf)

    def certify(self, leaf: trustme.LeafCert) -> None:
        """Put a certificate where certbot does."""
        (self.directory / "fullchain.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(str(self.directory / "privkey.pem"))

    def _server(self, *, tls: bool) -> str:
        plain = [("listen 80;", f"listen 127.0.0.1:{self.plain_port};"), ("listen [::]:80;", "")]
        if not tls:
            return self._elsewhere("bloomd.conf", *plain)
        return self._elsewhere(
            "bloomd-tls.conf",
            *plain,
            ("listen 443 ssl http2;", f"listen 127.0.0.1:{self.port} ssl http2;"),
            ("listen [::]:443 ssl http2;", ""),
            ("https://$server_name$request_uri;", f"https://$server_name:{self.port}$request_uri;"),
        )

    def _upstream(self, node: Path, other: Path | None) -> str:
        """The block for several nodes is the one of the comment."""
        one, several = "server unix:/run/bloomd/http/bloomd.sock;", "server unix:/run/bloomd/http/bloomd.sock max_fails"
        if other is None:
            return self._elsewhere("bloomd-upstream.conf", (one, f"server unix:{node};"))
        return self._elsewhere(
            "bloomd-upstream.conf",
            (one, ""),
            (f"# {several}", f"server unix:{node} max_fails"),
            ("# server 10.0.0.2:5000 max_fails", f"server unix:{other} max_fails"),
        )

    def _elsewhere(self, name: str, *replacements: tuple[str, str]) -> str:
        """One of our files with other addresses and paths, and nothing else changed."""
        text = (FILES / name).read_text()
        for old, new in replacements:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        for old, new in (
            (f"/etc/letsencrypt/live/{EXAMPLE}", str(self.directory)),
            (EXAMPLE, NAME),
            ("/var/log/nginx/bloomd.access.log", str(self.access_log)),
            ("/var/lib/nginx/bloomd", f"{self.directory}/cache"),
            ("/var/www/bloomd", str(self.webroot)),
        ):
            text = text.replace(old, new)
        return text

    def __enter__(self) -> Self:
        with self.error_log.open("wb") as errors:
            self._process = subprocess.Popen(self.command, stderr=errors)
        eventually(self._serves)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)

    def _serves(self) -> bool:
        assert self._process.poll() is None, self.error_log.read_text()
        return accepts(self.port) and accepts(self.plain_port)
