"""What README.md says about moving from the Node.js runtime, typed on a machine with OpenRC: there, a backup, and back.

Alpine's package manager and the programs of PostgreSQL are not on that machine: they are played.
"""

import re
from collections.abc import Iterator

import httpx
import pytest
from openrc_root import SOURCES, OpenrcRoot
from psycopg.conninfo import conninfo_to_dict
from servers import PostgresServer, free_port
from test_openrc_root import BUSYBOX

README = (SOURCES / "README.md").read_text()

KEY = "a-test-key-that-is-long-enough"

# What the packages of step 1 bring along.
APK = """\
#!/bin/sh
for user in nginx postgres; do useradd --system "$user"; done
"""
PG_DUMP = """\
#!/bin/sh
[ "$*" = "-Fc bloom_runtime" ] && [ "$(id -un)" = postgres ] && echo "all tables"
"""
OLD_SERVICE = """\
#!/sbin/openrc-run
start() { touch /run/old-runs; }
stop() { rm /run/old-runs; }
"""


def shown(heading: str, language: str) -> list[str]:
    """The blocks of a section, in their order: files, or what is to be typed."""
    level = heading.partition(" ")[0]
    section = re.split(rf"^#{{2,{len(level)}}} ", README.partition(f"\n{heading}\n")[2], maxsplit=1, flags=re.MULTILINE)
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", section[0], re.MULTILINE | re.DOTALL)
    return [re.sub(r"^# ", "", block, flags=re.MULTILINE) if language == "console" else block for block in blocks]


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def machine(port: int) -> Iterator[OpenrcRoot]:
    """Where the Node.js runtime still works."""
    with PostgresServer(port=free_port()) as server, OpenrcRoot() as machine:
        database = conninfo_to_dict(server.create_database())["dbname"]
        machine.ok("rm -rf /var/backups")  # Alpine has none
        for path, script in (
            ("/usr/local/bin/apk", APK),
            ("/usr/local/bin/pg_dump", PG_DUMP),
            ("/etc/init.d/bloom-runtime", OLD_SERVICE),
        ):
            machine.write(path, script)
            machine.ok(f"chmod 755 {path}")
        machine.write(
            "/etc/bloom-runtime.env",
            f"NODE_ENV=production\nDATABASE_URL=postgresql://bloomd@127.0.0.1:{server.port}/{database}\n"
            f"RUNTIME_API_KEY={KEY}\n",
        )
        machine.ok(
            "chmod 600 /etc/bloom-runtime.env; rc-service bloom-runtime start; rc-update add bloom-runtime default"
        )
        yield machine


def typed(machine: OpenrcRoot, commands: str) -> str:
    return machine.ok(f"set -e\n{BUSYBOX}\n{commands}")


def test_moving(machine: OpenrcRoot, port: int) -> None:
    [programs], [users] = shown("### 1. Programs", "console"), shown("### 2. User and groups", "console")
    typed(machine, programs + users)
    [settings] = shown("## Moving from the Node.js runtime", "yaml")
    assert "127.0.0.1:5000" in settings
    machine.write("/etc/bloomd/bloomd.yaml", settings.replace("127.0.0.1:5000", f"127.0.0.1:{port}"))
    move, _ = shown("## Moving from the Node.js runtime", "console")
    commands, look, _ = move.partition("bloomd doctor\n")
    assert look
    typed(machine, commands)
    assert machine.ok("cat /var/backups/bloom-runtime.dump") == "all tables\n"
    assert machine.run("test -e /run/old-runs").returncode == 1
    assert machine.ok("rc-update show default").split()[::3] == ["bloomd"]
    found = re.findall(r"^(?:error|warning) +(\S+):", machine.run(look).stdout, re.MULTILINE)
    about_this = [name for name in found if not name.startswith(("disk.", "clock."))]  # but for what is the host's
    assert about_this == ["postgres.fsync"]  # off in tests
    assert httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False).status_code == 200


def test_what_is_called_by_hand_knows_the_settings_of_before(machine: OpenrcRoot) -> None:
    [update] = shown("## Update", "console")
    assert "bloomd migrate --status\n" in update
    assert "schema" in machine.ok("bloomd migrate --status")


def test_a_backup_has_the_settings_of_all_that_goes_with_bloomd(machine: OpenrcRoot) -> None:
    copy, _, back, _ = shown("## Backup", "console")
    settings, left_out = re.subn(r"^bloomd backup .*\n", "", copy, flags=re.MULTILINE)  # it takes a real pg_dump
    assert left_out == 2
    machine.ok(
        "mkdir -p /etc/nginx /etc/bloomd-worker; touch /etc/nginx/bloomd-locations.conf /etc/bloomd-worker/token"
    )
    typed(machine, settings)
    kept = machine.ok("tar -tzf /var/backups/bloomd-etc.tar.gz").split()
    for path in ("bloomd/bloomd.yaml", "bloom-runtime.env", "conf.d/bloomd", "nginx/bloomd-locations.conf"):
        assert f"etc/{path}" in kept
    assert "etc/bloomd-worker/token" in kept
    assert set(machine.ok("stat -c %a /var/backups/*").split()) == {"600"}
    before = machine.ok("stat -c '%n %a %U %G' /etc/bloomd/* /etc/bloom-runtime.env")
    machine.ok("rm -r /etc/bloomd /etc/bloom-runtime.env")
    [restore] = re.findall(r"^tar .*", back, re.MULTILINE)
    machine.ok(restore)
    assert machine.ok("stat -c '%n %a %U %G' /etc/bloomd/* /etc/bloom-runtime.env") == before


def test_the_way_back(machine: OpenrcRoot) -> None:
    [commands] = shown("### The way back", "console")
    status, change = "bloomd migrate --to 0 --status\n", "bloomd migrate --to 0\n"
    assert status + change in commands
    # The status is 1 for a schema that is not there yet, and who has no terminal cannot be asked.
    typed(machine, commands.replace(status, "").replace(change, f"{change.strip()} --yes\n"))
    machine.ok("test -e /run/old-runs")
    assert machine.ok("rc-update show default").split()[::3] == ["bloom-runtime"]
