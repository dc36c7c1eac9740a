"""A real nginx as a child process, with nginx/bloomd.conf under other addresses and paths."""

import os
import subprocess
from pathlib import Path
from typing import Self

from servers import eventually, free_port
from tools import require
from upstream import accepts

CONFIGURATION = (Path(__file__).parents[2] / "nginx" / "bloomd.conf").read_text()

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
    """Serves on a free port of loopback what is behind `socket`; keeps its files in `directory`."""

    def __init__(self, directory: Path, socket: Path) -> None:
        self.port = free_port()
        self.access_log = directory / "access.log"
        self.command = [require("nginx"), "-p", f"{directory}/", "-c", f"{directory}/nginx.conf", "-e", "stderr"]
        self.error_log = directory / "error.log"
        conf = _adapted(
            CONFIGURATION,
            ("listen 80;", f"listen 127.0.0.1:{self.port};"),
            ("listen [::]:80;", ""),
            ("server unix:/run/bloomd/http/bloomd.sock;", f"server unix:{socket};"),
            ("/var/log/nginx/bloomd.access.log", str(self.access_log)),
        )
        (directory / "bloomd.conf").write_text(conf)
        (directory / "nginx.conf").write_text(MAIN.format(user="user root;" if os.geteuid() == 0 else ""))

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
        return accepts(self.port)


def _adapted(text: str, *replacements: tuple[str, str]) -> str:
    """The configuration with other addresses and paths, and nothing else changed."""
    for old, new in replacements:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text
