"""bloomd and a worker as services of a real OpenRC, installed by the commands of bloomd(8), from the start to the end.

The tests go on where the one before has ended.
"""

import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from openrc_root import SOURCES, OpenrcRoot
from psycopg.conninfo import conninfo_to_dict
from servers import PostgresServer, eventually, free_port

KEY = "a-test-key-that-is-long-enough"
SECONDS = 20.0

# The words of Alpine's busybox, and what they are in Debian.
BUSYBOX = """\
addgroup() { if [ "$1" = -S ]; then groupadd --system "$2"; else gpasswd --add "$1" "$2" >/dev/null; fi; }
adduser() (
    while getopts SDHh:s:G: option; do
        case $option in h) home=$OPTARG ;; s) shell=$OPTARG ;; G) group=$OPTARG ;; *) ;; esac
    done
    shift $((OPTIND - 1))
    useradd --system --no-create-home --home-dir "$home" --shell "$shell" --gid "$group" "$1"
)
"""

CONFIG = """\
http:
  bind: [{bind}]
  api_key: {key}
  drain_seconds: 2
log:
  level: {level}
"""

WORKER = """\
worker:
  server: {url}
  name: gpu-1
  token_file: /etc/bloomd-worker/token
  root: /var/lib/bloomd-worker/work
  max_concurrency: 2
  grace_seconds: {grace}
"""


def documented(*beginnings: str) -> list[str]:
    """The commands of bloomd(8), under INSTALLATION, that begin so, in their order."""
    page = (SOURCES / "man" / "bloomd.8").read_text().replace(r"\-", "-").replace(r"\e", "\\")
    section = page.partition(".Sh INSTALLATION")[2].partition("\n.Ss nginx")[0]
    commands = re.findall(r"^(?:\.Dl )?# (.*\n(?:> .*\n)*)", section, re.MULTILINE)
    return [command.replace("\n> ", "\n") for command in commands if command.startswith(beginnings)]


class Machine(OpenrcRoot):
    """With bloomd and a worker installed, and a database that only the environment file names."""

    def __init__(self, server: PostgresServer) -> None:
        super().__init__()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        database = str(conninfo_to_dict(server.create_database())["dbname"])
        self.database = f"postgresql://bloomd@127.0.0.1:{server.port}/{database}"
        self.http = httpx.Client(base_url=self.url, headers={"X-Runtime-API-Key": KEY}, timeout=30, trust_env=False)

    def configure(self, **changed: Any) -> None:
        told = {"bind": f'"127.0.0.1:{self.port}", "unix:/run/bloomd/http/bloomd.sock"', "key": KEY, "level": "info"}
        self.write("/etc/bloomd/bloomd.yaml", CONFIG.format(**told | changed))

    def service(self, command: str, name: str = "bloomd") -> "subprocess.CompletedProcess[str]":
        return self.run(f"rc-service {name} {command}")

    def daemons(self, command: str = "bloomd run") -> list[int]:
        """The process that supervise-daemon has started, when it is there."""
        return [
            pid for pid, args in self.processes().items() if command in args and not args.startswith("supervise-daemon")
        ]

    def daemon(self, command: str = "bloomd run") -> int:
        [found] = self.daemons(command)
        return found

    def status(self, name: str = "bloomd") -> int:
        return self.service("status", name).returncode

    def ctl(self, arguments: str) -> str:
        return self.ok(f"bloomd-ctl {arguments}")

    def is_ready(self) -> bool:
        try:
            return self.http.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def task(self, prompt: str, **more: Any) -> str:
        answer = self.http.post("/api/runtime/llm-tasks", json={"prompt": prompt, **more})
        return answer.raise_for_status().json()["id"]

    def of(self, task: str) -> str:
        return self.http.get(f"/api/runtime/llm-tasks/{task}").raise_for_status().json()["status"]

    def eventually(self, condition: Callable[[], object]) -> None:
        eventually(condition, seconds=SECONDS)

    @contextmanager
    def background(self, script: str) -> "Iterator[subprocess.Popen[str]]":
        with subprocess.Popen(
            self.command(script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with PostgresServer(port=free_port()) as server, Machine(server) as machine:
        for command in documented("make install"):
            machine.ok(command)
        yield machine
        machine.http.close()


def test_the_commands_of_the_manual_page_make_the_user_and_its_groups(machine):
    commands = documented("addgroup", "adduser", "for group")
    assert len(commands) == 3
    machine.ok(f"set -e\n{BUSYBOX}\n" + "".join(commands))
    user = machine.ok("getent passwd bloomd").strip().split(":")
    assert user[5:] == ["/var/lib/bloomd", "/sbin/nologin"]
    assert set(machine.ok("id -Gn bloomd").split()) == {"bloomd", "bloomd-admin", "bloomd-web"}


def test_it_does_not_start_with_what_it_could_not_run_with(machine):
    refused = machine.service("start")
    assert (refused.returncode, "chgrp bloomd /etc/bloomd/bloomd.yaml && chmod 640" in refused.stdout) == (1, True)
    machine.ok("; ".join(documented("chgrp")))
    machine.configure(level="loud")
    refused = machine.service("start")
    assert (refused.returncode, "/etc/bloomd/bloomd.yaml:6:10: `log.level`: " in refused.stdout) == (1, True)
    assert machine.service("checkconfig").returncode == 1
    machine.configure()
    machine.ok("umask 077; echo >/etc/bloom-runtime.env")
    machine.write("/etc/bloom-runtime.env", f"DATABASE_URL={machine.database}\n")
    refused = machine.service("start")
    assert refused.returncode == 1
    [help] = re.findall(r"chgrp bloomd /etc/bloom-runtime\.env && chmod 640 /etc/bloom-runtime\.env", refused.stdout)
    assert machine.status() == 3
    machine.ok(help)
    assert "/etc/bloom-runtime.env counts, too" in machine.ok("rc-service bloomd checkconfig")


def test_it_starts_and_is_ready_when_the_command_returns(machine):
    migrate, start = documented("rc-service")
    said = machine.ok(start)
    assert re.search(r"^ \* down: database has failed: the database has no schema yet", said, re.MULTILINE), said
    said = machine.ok(migrate)
    assert re.search(r"the schema is at \d+$", said, re.MULTILINE), said
    machine.eventually(machine.is_ready)
    machine.ok("rc-service bloomd restart")
    assert machine.ctl("ping")
    assert machine.status() == 0
    machine.eventually(machine.is_ready)
    machine.ok("; ".join(documented("rc-update")))
    assert re.search(r"^ *bloomd \| +default *$", machine.ok("rc-update show"), re.MULTILINE)


def test_it_starts_after_the_network_and_needs_no_database_of_this_machine(machine):
    tree = machine.ok("rc-update --update; cat /run/openrc/deptree")
    [number] = re.findall(r"^depinfo_(\d+)_service='bloomd'$", tree, re.MULTILINE)
    asked = re.findall(rf"^depinfo_{number}_i(need|use|after)_\d+='(.*)'$", tree, re.MULTILINE)
    assert set(asked) == {("need", "net"), ("use", "postgresql"), ("after", "firewall")}


def test_it_runs_as_its_user_with_directories_that_are_closed_to_others(machine):
    assert machine.ok(f"ps -o user= -o group= -p {machine.daemon()}").split() == ["bloomd", "bloomd"]
    paths = "/run/bloomd /run/bloomd/http /run/bloomd/bloomd.sock /var/lib/bloomd /var/log/bloomd /var/log/bloomd/*"
    assert machine.ok(f"stat -c '%n %A %U %G' {paths}").splitlines() == [
        "/run/bloomd drwx--x--x bloomd bloomd",
        "/run/bloomd/http drwxr-x--- bloomd bloomd-web",
        "/run/bloomd/bloomd.sock srw-rw---- bloomd bloomd-admin",
        "/var/lib/bloomd drwxr-x--- bloomd bloomd",
        "/var/log/bloomd drwxr-x--- bloomd bloomd",
        "/var/log/bloomd/bloomd-error.log -rw-r----- bloomd bloomd",
        "/var/log/bloomd/bloomd.log -rw-r----- bloomd bloomd",
    ]
    process = f"/proc/{machine.daemon()}"
    assert re.search(r"^Max open files +16384 +16384 ", machine.ok(f"cat {process}/limits"), re.MULTILINE)
    assert "Umask:\t0027\n" in machine.ok(f"cat {process}/status")


def test_a_reload_brings_a_good_configuration_into_force_and_refuses_a_bad_one(machine):
    before = machine.daemon()
    machine.configure(level="debug")
    machine.ok("rc-service bloomd reload")
    assert machine.ctl("log-level").strip().endswith("debug")
    machine.configure(level="loud")
    for command in ("reload", "restart"):
        refused = machine.service(command)
        assert (refused.returncode, "`log.level`" in refused.stdout) == (1, True), command
        assert (machine.daemon(), machine.status(), machine.is_ready()) == (before, 0, True)


def test_information_and_errors_are_in_files_of_their_own(machine):
    machine.ok(f"kill -HUP {machine.daemon()}")  # with the bad configuration, which the service would not let through
    machine.eventually(lambda: "`log.level`" in machine.ok("cat /var/log/bloomd/bloomd-error.log"))
    levels = {
        file: set(re.findall(r" level=(\w+) ", machine.ok(f"cat /var/log/bloomd/{file}")))
        for file in ("bloomd.log", "bloomd-error.log")
    }
    assert levels["bloomd.log"] == {"info", "debug"}
    assert levels["bloomd-error.log"] <= {"warning", "error"}
    machine.configure()


def test_a_daemon_that_was_killed_is_there_again_but_not_for_ever(machine):
    """As often as the daemon's own supervisor allows: a sixth time within a minute wants a person."""
    machine.ok(f"kill -9 {machine.daemon()}")
    machine.eventually(machine.is_ready)
    assert machine.status() == 0
    for _ in range(5):
        machine.eventually(machine.daemons)
        killed = machine.daemon()
        machine.ok(f"kill -9 {killed}")
        machine.eventually(lambda gone=killed: gone not in machine.processes())
    machine.eventually(lambda: machine.processes() == {})
    assert machine.status() == 3
    machine.ok("rc-service bloomd start")


def test_a_start_fails_when_the_daemon_ends_and_another_one_may_succeed(machine):
    machine.ok("rc-service bloomd stop")
    with socket.create_server(("127.0.0.1", machine.port)):
        refused = machine.service("start")
        assert (refused.returncode, "it has ended for good" in refused.stdout) == (1, True), refused.stdout
        assert (machine.status(), machine.processes()) == (3, {})
    machine.ok("rc-service bloomd start")
    machine.eventually(machine.is_ready)


def test_a_restart_takes_what_conf_d_says_and_replaces_a_daemon_that_hangs(machine):
    machine.write("/etc/conf.d/bloomd", 'healthcheck_timer="1"\nretry="TERM/1/KILL/1"\nBLOOMD_DRAIN_SECONDS="1"\n')
    machine.ok("rc-service bloomd restart")
    before = machine.daemon()
    machine.ok(f"kill -STOP {before}")
    eventually(lambda: before not in machine.processes(), seconds=2 * SECONDS)
    machine.eventually(machine.is_ready)
    assert machine.status() == 0


@pytest.fixture(scope="module")
def worker(machine: Machine) -> Machine:
    """A machine for a worker, too, as the install script makes one; the Claude CLI in it is ours."""
    machine.ok(f"""set -e
{BUSYBOX}
addgroup -S bloomd-worker
adduser -S -D -H -h /var/lib/bloomd-worker -s /sbin/nologin -G bloomd-worker bloomd-worker
install -d -m 750 -g bloomd-worker /etc/bloomd-worker
install -D -m 755 tests/fake_claude.py /usr/local/bin/claude
umask 077
bloomd-ctl worker token gpu-1 >/etc/bloomd-worker/token""")
    machine.write("/etc/bloomd-worker/worker.yaml", WORKER.format(url=machine.url, grace=20))
    return machine


def test_a_worker_says_what_it_cannot_read(worker):
    refused = worker.service("start", "bloomd-worker")
    assert refused.returncode == 1
    [help] = re.findall(r"chgrp bloomd-worker \S+ && chmod 640 \S+token", refused.stdout)
    worker.ok(help)
    worker.ok("rc-service bloomd-worker start")
    assert worker.status("bloomd-worker") == 0


def test_a_worker_works_as_its_user(worker):
    task = worker.task("fake:env")
    worker.eventually(lambda: worker.of(task) == "completed")
    result = worker.ok(f"bloomd-ctl task result {task}")
    assert '"HOME": "/var/lib/bloomd-worker"' in result
    assert '"PATH": "/var/lib/bloomd-worker/.local/bin:' in result
    assert worker.ok(f"ps -o euser:32= -p {worker.daemon('bloomd worker')}").strip() == "bloomd-worker"
    assert worker.ok("stat -c '%A %U' /var/log/bloomd-worker.log").split() == ["-rw-r-----", "bloomd-worker"]


def test_a_restart_of_a_worker_with_a_bad_configuration_leaves_it_as_it_is(worker):
    before = worker.daemon("bloomd worker")
    worker.write("/etc/bloomd-worker/worker.yaml", "worker: {}\nworkers: {tokens: 1}\n")
    assert worker.service("restart", "bloomd-worker").returncode == 1
    assert worker.daemon("bloomd worker") == before
    worker.write("/etc/bloomd-worker/worker.yaml", WORKER.format(url=worker.url, grace=20))


def test_draining_a_worker_lets_a_task_finish(worker):
    task = worker.task("fake:slow 2\nfake:say done")
    worker.eventually(lambda: worker.of(task) == "running")
    worker.ok("rc-service bloomd-worker drain")
    assert worker.of(task) == "completed"
    assert worker.status("bloomd-worker") == 3
    assert [args for args in worker.processes().values() if "worker" in args] == []


def test_draining_a_worker_gives_back_what_does_not_finish(worker):
    worker.write("/etc/bloomd-worker/worker.yaml", WORKER.format(url=worker.url, grace=1))
    worker.ok("rc-service bloomd-worker start")
    task = worker.task("fake:hang")
    worker.eventually(lambda: worker.of(task) == "running")
    worker.ok("rc-service bloomd-worker drain")
    assert worker.of(task) == "queued"
    assert [args for args in worker.processes().values() if "worker" in args or "claude" in args] == []
    worker.ctl(f"task cancel {task}")


def test_draining_waits_for_tasks_under_way_and_says_how_many_are_left(machine):
    worker = {"name": "by-hand", "capabilities": {"max_concurrency": 4}}
    machine.http.post("/api/runtime/workers", json=worker).raise_for_status()
    task, path = machine.task("x"), "/api/runtime/llm-tasks"
    machine.http.post(f"{path}/{task}/lease", json={"worker_id": "by-hand"}).raise_for_status()
    over = machine.service("drain")
    assert (over.returncode, "1 lease left after 1 s" in over.stdout) == (1, True)
    machine.write("/etc/conf.d/bloomd", "")
    with machine.background("rc-service bloomd drain") as draining:
        assert draining.stdout
        assert any("1 lease left" in line for line in draining.stdout)
        completion = {"status": "success", "output": "y"}
        machine.http.post(f"{path}/{task}/complete", json=completion).raise_for_status()
        assert "no task is leased" in draining.stdout.read()
        assert draining.wait(SECONDS) == 0
    waits = machine.task("x")
    assert "drained by rc-service" in machine.ctl(f"why {waits}")


def test_it_is_not_uninstalled_while_it_runs_or_would_run_after_a_boot(machine):
    for before in ("true", "rc-service bloomd-worker stop; rc-service bloomd stop"):
        refused = machine.run(f"{before}; make uninstall")
        assert refused.returncode == 2
        assert "rc-service bloomd stop; rc-update del bloomd default" in refused.stdout
    machine.ok("rc-update del bloomd default && make uninstall")
    assert machine.ok("ls /etc/init.d /etc/runlevels/default").count("bloomd") == 0
    machine.ok("make install-files")


def test_after_a_stop_nothing_is_left(machine):
    for name in ("bloomd-worker", "bloomd"):
        machine.service("stop", name)
        assert machine.status(name) == 3
    assert machine.processes() == {}
    assert machine.ok("find /run/bloomd /run/*.pid /run/openrc/supervise-* ! -type d 2>/dev/null; true") == ""
    assert machine.ok("find /tmp -user bloomd -o -user bloomd-worker") == ""
