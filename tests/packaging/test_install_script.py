"""The install script, from a real daemon, run by dash and by busybox on a scratch machine."""

import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from bloomd_process import KEY, Bloomd
from scratch_machine import ScratchMachine, third_party
from servers import PostgresServer, eventually
from tools import require

from bloomd import __version__
from bloomd.http.install.script import Machine, script
from bloomd.settings import load

FAKE_CLAUDE = Path(__file__).parents[1] / "fake_claude.py"

SHELLS = [("dash", "-c"), ("busybox", "sh", "-c")]
SCRIPT = "/api/runtime/agent-install-script"

# All of them names that a worker may have: the rules for names keep slashes and control characters out, and no more.
NAMES = [
    "w1",
    "it's \"quoted\" \\ \\n",
    "$(touch pwned) `touch pwned` ${HOME} $((1+1)) !!",
    "'; touch pwned; '",
    "\"; touch pwned; \"",
    "-n --help # {} [] : - & * ! | > ? @ %",
    "їжак 🦔 \u2028\u0085",
    "x" * 128,
]  # fmt: skip


@pytest.fixture(scope="module")
def daemon(postgres_server: PostgresServer) -> Iterator[Bloomd]:
    bloomd = Bloomd(postgres_server.create_database(), log__level="debug")
    bloomd.settings["http.public_url"] = bloomd.url
    bloomd.migrate()
    with bloomd:
        yield bloomd


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return third_party(tmp_path_factory.mktemp("packages"))


@pytest.fixture
def machine(tmp_path: Path, packages: Path) -> Callable[..., ScratchMachine]:
    def make(shell: str = "dash", **how: object) -> ScratchMachine:
        return ScratchMachine(tmp_path / shell, packages, shell=shell, **how)  # pyright: ignore[reportArgumentType]

    return make


@pytest.fixture(scope="module")
def stranger(daemon: Bloomd) -> Iterator[httpx.Client]:
    """Each time from another address."""
    with httpx.Client(base_url=daemon.url, timeout=30, trust_env=False) as client:
        yield client


def fetched(daemon: Bloomd, name: str = "w1", **query: object) -> str:
    answer = daemon.http.get(SCRIPT, params={"node_id": name, **query})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    return answer.text


def enrol(daemon: Bloomd, name: str = "w1") -> str:
    return daemon.http.post("/api/runtime/enrolments", json={"worker": name}).json()["code"]


def code_in(text: str) -> str:
    return re.findall(r"CODE=(bloome_[A-Za-z0-9_-]{43})", text)[0]


def may_claim(daemon: Bloomd, name: str, token: str) -> bool:
    headers = {"X-Runtime-API-Key": token}
    with httpx.Client(base_url=daemon.url, headers=headers, trust_env=False) as worker:
        registered = worker.post("/api/runtime/workers", json={"name": name})
        return registered.is_success


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize(("shell", "init"), [("dash", "systemd"), ("busybox", "openrc")])
def test_a_machine_becomes_a_worker_and_is_brought_up_to_date(daemon, machine, shell, init):
    name = f'{shell}\'s "$(id)" \\ `id` #1'
    it = machine(shell, init=init)
    first = fetched(daemon, name, max_concurrency=3, label=["gpu", "a 'b' \"c\" $(id) \\"])
    done = it.run(first)
    assert done.returncode == 0, done.stdout + done.stderr
    etc, venv = it.root / "etc/bloomd-worker", it.root / "opt/bloomd-worker/venv"
    token = (etc / "token").read_text().strip()
    assert (mode(etc / "token"), mode(etc / "worker.yaml"), mode(etc)) == (0o600, 0o640, 0o750)
    worker = load(etc / "worker.yaml", environ={}).settings.worker
    assert (worker.server, worker.name, worker.token) == (daemon.url, name, token)
    assert (worker.max_concurrency, worker.labels) == (3, ("gpu", "a 'b' \"c\" $(id) \\"))
    assert worker.root == str(it.root / "var/lib/bloomd-worker/work")
    assert may_claim(daemon, name, token)
    version = subprocess.run([venv / "bin/bloomd", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"bloomd {__version__}\n"
    calls = it.called()
    user, home, nologin = "bloomd-worker", it.root / "var/lib/bloomd-worker", it.tools / "nologin"
    made = [call for call in calls if call.startswith(("useradd", "adduser", "addgroup"))]
    assert made == {
        "dash": [f"useradd --system --user-group --no-create-home --home-dir {home} --shell {nologin} bloomd-worker"],
        "busybox": ["addgroup -S bloomd-worker", f"adduser -S -D -H -h {home} -s /bin/false -G {user} {user}"],
    }[shell]  # fmt: skip
    assert f"chown bloomd-worker:bloomd-worker {etc}/token" in calls
    assert any(call in calls for call in ("systemctl --quiet enable bloomd-worker",
                                          "rc-update --quiet add bloomd-worker default"))  # fmt: skip
    assert not any("restart" in call for call in calls), "there is no Claude CLI"
    assert "the Claude CLI is not there yet" in done.stdout
    assert not any(secret in "".join(calls) + done.stdout for secret in (token, code_in(first)))
    assert list(Path(it.environ["TMPDIR"]).iterdir()) == []
    assert not any("sudoers" in str(path) for path in it.root.rglob("*"))
    service(it, init)

    # What was changed by hand stays; the program comes back, and the service starts anew.
    edited = (etc / "worker.yaml").read_text() + "  grace_seconds: 7\n"
    (etc / "worker.yaml").write_text(edited)
    (venv / "bin/bloomd").write_text("something else")
    claude = it.root / "var/lib/bloomd-worker/.local/bin/claude"
    claude.parent.mkdir(parents=True)
    claude.write_text(f"#!{sys.executable}\n{FAKE_CLAUDE.read_text()}")
    claude.chmod(0o755)
    second = fetched(daemon, name, max_concurrency=5)
    done = it.run(second if shell == "dash" else without_program(second))
    assert done.returncode == 0, done.stdout + done.stderr
    assert ((etc / "token").read_text().strip(), (etc / "worker.yaml").read_text()) == (token, edited)
    assert ("bloomd.cli" in (venv / "bin/bloomd").read_text()) is (shell == "dash")
    calls = it.called()
    assert not any(call.startswith(("useradd", "adduser")) for call in calls)
    if shell == "dash":
        works(daemon, name, [venv / "bin/bloomd", "worker", "-c", etc / "worker.yaml"], claude.parent)
    assert {"systemd": "systemctl restart bloomd-worker", "openrc": "rc-service bloomd-worker restart"}[init] in calls
    assert len(daemon.http.get(f"/api/runtime/workers/{quote(name)}/tokens").json()) == 1


def works(daemon: Bloomd, name: str, command: list[object], path: Path) -> None:
    """What was installed does a task, by what the script has written."""
    task = daemon.http.post("/api/runtime/llm-tasks", json={"prompt": "fake:say done", "pinned_worker_id": name}).json()
    with subprocess.Popen(map(str, command), env={"PATH": f"{path}:/usr/bin:/bin", "HOME": str(path)}) as worker:
        try:
            eventually(lambda: _status(daemon, task["id"]) == "completed")
            worker.terminate()
            assert worker.wait(30) == 0
        finally:
            worker.kill()


def _status(daemon: Bloomd, task_id: str) -> str:
    return daemon.http.get(f"/api/runtime/llm-tasks/{task_id}").json()["status"]


def service(it: ScratchMachine, init: str) -> None:
    """It runs the command, as the user, and is a file that its init system can read."""
    command = f"{it.root}/opt/bloomd-worker/venv/bin/bloomd"
    arguments = f"worker -c {it.root}/etc/bloomd-worker/worker.yaml"
    if init == "systemd":
        unit = (it.root / "etc/systemd/system/bloomd-worker.service").read_text()
        assert f"\nExecStart={command} {arguments}\n" in unit
        assert "\nUser=bloomd-worker\n" in unit
        return
    script = it.root / "etc/init.d/bloomd-worker"
    assert mode(script) == 0o755
    subprocess.run([require("shellcheck"), "-s", "sh", script], check=True)
    asked = 'echo "$command|$command_args|$command_user|$retry|$pidfile|$output_log"'
    openrc = {"RC_SVCNAME": "bloomd-worker", "PATH": "/usr/bin:/bin"}
    said = subprocess.run(["sh", "-c", f". {script}; {asked}"], capture_output=True, text=True, env=openrc, check=True)
    assert said.stdout.strip().split("|") == [
        command, arguments, "bloomd-worker:bloomd-worker", "TERM/60/KILL/5", "/run/bloomd-worker.pid",
        "/var/log/bloomd-worker.log",
    ]  # fmt: skip


def test_without_root_it_goes_into_the_home_and_is_started_by_hand(daemon, machine):
    it = machine("dash", root=False, init="systemd")
    done = it.run(without_program(fetched(daemon, "mine")))
    assert done.returncode == 0, done.stdout + done.stderr
    config = it.home / ".config/bloomd-worker/worker.yaml"
    assert load(config, environ={}).settings.worker.name == "mine"
    assert f"'{it.home}/.local/lib/bloomd-worker/venv/bin/bloomd' worker -c '{config}'" in done.stdout
    assert [call.split()[0] for call in it.called() if not call.startswith(("id", "python3"))] == []

    # A token that counts no longer is replaced; another name has a token of its own, and the old file is kept.
    [token] = daemon.http.get("/api/runtime/workers/mine/tokens").json()
    daemon.http.delete(f"/api/runtime/workers/mine/tokens/{token['id']}").raise_for_status()
    for name in ("mine", "other"):
        done = it.run(without_program(fetched(daemon, name)))
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(daemon.http.get(f"/api/runtime/workers/{name}/tokens").json()) == 1
        assert may_claim(daemon, name, (config.parent / "token").read_text().strip())
    assert load(config, environ={}).settings.worker.name == "other"
    assert '  name: "mine"' in config.with_name("worker.yaml.old").read_text()


def without_program(text: str) -> str:
    """The script without its slowest step, where something else matters."""
    assert text.count("\tinstall_program\n") == 1
    return text.replace("\tinstall_program\n", "")


def assigned(text: str, shell: tuple[str, ...], names: list[str]) -> list[str]:
    """What the variables hold, as this shell understands the script."""
    lines = re.search(r"\n\tSERVER=.*?\n(?=\n\tsay\(\))", text, re.DOTALL)
    assert lines
    told = "; ".join(f'printf "%s\\0" "${name}"' for name in names)
    done = subprocess.run([require(shell[0]), *shell[1:], f"{lines[0]}{told}"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_what_is_asked_for_is_data_to_the_shell(daemon, shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        labels = [name[:64], "\n$(touch pwned)\n'"]
        text = fetched(daemon, name, label=labels)
        assert assigned(text, shell, ["WORKER", "CODE"]) == [name, code_in(text)]
        [said] = assigned(text, shell, ["LABELS"])
        assert json.loads(said) == labels
    server = "http://x/'$(touch pwned)`touch pwned`\"\\"
    text = script(Machine(server, "w1", "'\n$(touch pwned)"))
    assert assigned(text, shell, ["SERVER", "CODE"]) == [server, "'\n$(touch pwned)"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"node_id": ""},
        {"node_id": "a/b"},
        {"node_id": "a\nb"},
        {"node_id": "a\x7fb"},
        {"node_id": "x" * 129},
        {"node_id": "x" * 20_000},
        {"node_id": "w1", "port": "0"},
        {"node_id": "w1", "port": "8001; touch pwned"},
        {"node_id": "w1", "max_concurrency": "33"},
        {"node_id": "w1", "max_concurrency": "$(id)"},
        {"node_id": "w1", "label": "x" * 65},
        {"node_id": "w1", "label": ["x"] * 65},
        {"node_id": "w1", "label": ""},
    ],
    ids=lambda query: str(query)[:40],
)
def test_what_makes_no_sense_is_refused(daemon, query):
    answer = daemon.http.get(SCRIPT, params=query)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")


@pytest.mark.parametrize("shell", ["dash", "busybox"])
def test_a_script_that_was_cut_off_does_nothing(machine, shell):
    text = script(Machine("http://127.0.0.1:9", "w1", "bloome_" + "x" * 43)).encode()
    it = machine(shell, init="openrc")
    ends = {match.end() for match in re.finditer(rb"\n", text)} | set(range(len(text) - 60, len(text)))
    cut = sorted(ends - {len(text), len(text) - 1})[:: 1 if shell == "dash" else 3]
    assert text[-2:] == b"}\n"
    for end in cut:
        it.run(text[:end])
        assert it.untouched, text[:end][-80:]
    it.run(text)
    assert not it.untouched


def test_shellcheck_has_nothing_to_say(daemon, tmp_path):
    for name in ("w1", NAMES[2]):
        (tmp_path / "install.sh").write_text(fetched(daemon, name))
        for dialect in ("sh", "dash"):
            subprocess.run([require("shellcheck"), "-s", dialect, tmp_path / "install.sh"], check=True)


def test_who_gets_a_script(daemon, stranger):
    assert stranger.get(SCRIPT).status_code == 401
    assert stranger.get(SCRIPT, params={"node_id": "w1"}).status_code == 401
    for code in ("x", "bloome_" + "x" * 43, "x" * 10_000, "ї'$(id)", KEY):
        answer = stranger.get(SCRIPT, params={"code": code})
        assert (answer.status_code, code in answer.text) == (401 if len(code) <= 256 else 400, False)
    code = enrol(daemon)
    answer = stranger.get(SCRIPT, params={"code": code, "node_id": "w2"})
    assert (answer.status_code, code in answer.text) == (400, False)
    for _ in range(2):  # to look at it spends nothing
        answer = stranger.get(SCRIPT, params={"code": code})
        assert (answer.status_code, code_in(answer.text)) == (200, code)
    exchanged = stranger.post("/api/runtime/enrolments/exchange", json={"code": code}).json()
    assert exchanged["worker"] == "w1"
    assert stranger.get(SCRIPT, params={"code": code}).status_code == 401
    answer = stranger.get(SCRIPT, params={"node_id": "w1"}, headers={"X-Runtime-API-Key": exchanged["token"]})
    assert answer.status_code == 403
    assert code_in(fetched(daemon, code=(mine := enrol(daemon)))) == mine


def test_no_query_of_it_is_logged(daemon, stranger):
    asked = ("s3cret-code", f"s3cret-{'x' * 300}", "s3cret&port=x", "s3cret&node_id=a/b")
    for number, query in enumerate(asked):
        for client in (stranger, daemon.http):
            client.get(f"{SCRIPT}?code={query}", headers={"X-Request-Id": f"request-{number}"})
    log = daemon.log.read_text()
    assert f"request-{len(asked) - 1}" in log
    assert "s3cret" not in log


def test_without_a_public_url_it_says_what_to_set(daemon):
    daemon.configure(http__public_url=None)
    assert daemon.ctl("reload").returncode == 0
    try:
        answer = daemon.http.get(SCRIPT, params={"node_id": "w1"}, headers={"X-Forwarded-Host": "evil.example.org"})
    finally:
        daemon.configure(http__public_url=daemon.url)
        assert daemon.ctl("reload").returncode == 0
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (400, "no-public-url")
    assert "http.public_url is not set" in answer.json()["error"]


def test_the_address_is_the_configured_one_whatever_a_request_says(daemon):
    headers = {"X-Forwarded-Host": "evil.example.org", "X-Forwarded-Proto": "gopher"}
    text = daemon.http.get(SCRIPT, params={"node_id": "w1"}, headers=headers).text
    assert "evil" not in text
    assert f"\tSERVER={daemon.url}\n" in text


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """Sends everybody to another place, which is another server to a client."""

    seen: list[str]

    def do_POST(self) -> None:
        self.seen.append(self.path)
        self.send_response(307)
        self.send_header("Location", f"http://localhost:{self.server.server_port}/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_code_is_sent_to_no_other_server(machine):
    Elsewhere.seen = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever).start()
        code = "bloome_" + "x" * 43
        done = machine("dash").run(script(Machine(f"http://127.0.0.1:{server.server_port}", "w1", code)))
        server.shutdown()
    assert (done.returncode, Elsewhere.seen) == (1, ["/api/runtime/enrolments/exchange"])
    assert "it answered 307" in done.stderr
    assert code not in done.stdout + done.stderr


def test_what_the_server_says_is_told(daemon, machine):
    it = machine("dash", root=False)
    done = it.run(script(Machine(daemon.url, "w1", "bloome_" + "x" * 43)))
    assert done.returncode == 1
    assert f"{daemon.url}: This enrolment code is not valid: it counts once, for an hour" in done.stderr
    text = fetched(daemon).replace("REQUIREMENTS_SHA256=", "REQUIREMENTS_SHA256=0")
    done = it.run(text)
    assert (done.returncode, "fetch the script again" in done.stderr) == (1, True)
    assert not (it.home / ".local/lib/bloomd-worker/venv/bin/bloomd").exists()
    assert list(Path(it.environ["TMPDIR"]).iterdir()) == []


@pytest.mark.parametrize(("shell", "hint"), [("dash", "apt-get install python3 python3-venv"), ("busybox", "apk add")])
def test_without_python_it_says_how_to_get_it(machine, shell, hint):
    it = machine(shell)
    (it.tools / "python3").unlink()
    if shell == "busybox":
        (it.tools / "apt-get").rename(it.tools / "apk")
    for version in ("", ".11", ".12", ".13", ".14"):
        (it.tools / f"python3{version}").write_text("#!/bin/sh\nexit 1\n")
        (it.tools / f"python3{version}").chmod(0o755)
    done = it.run(script(Machine("http://127.0.0.1:9", "w1", "x")))
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr
    assert hint in done.stderr
    assert not (it.root / "etc").exists()


def test_a_place_that_would_have_to_be_quoted_is_refused(machine):
    it = machine("dash")
    it.environ["BLOOMD_PREFIX"] = "/opt/a b\nExecStart=/bin/x"
    done = it.run(script(Machine("http://127.0.0.1:9", "w1", "x")))
    assert (done.returncode, "letters, digits" in done.stderr) == (1, True)
