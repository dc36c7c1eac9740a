"""Every setting there is: one Struct for each section of `bloomd.yaml`, one field for each key.

Values are checked by `msgspec.convert` (types and the bounds in `Meta`); what one key must hold beside another is
checked in `bloomd.settings.check`. The `description` of a field is its documentation: `bloomd.yaml.example` and the
manual page are made from it. A key named `X_file` names a file that holds `X`; only secrets have one.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Days = Annotated[float, Meta(gt=0, le=36500)]
Port = Annotated[int, Meta(ge=1, le=65535)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of the configuration file: its keys, and nothing else."""

    def __repr__(self) -> str:
        """The values without the secrets: a traceback or a log may show this."""
        values = {
            name: "****" if f"{name}_file" in self.__struct_fields__ and getattr(self, name) else getattr(self, name)
            for name in self.__struct_fields__
        }
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"


class Database(Section, frozen=True):
    """PostgreSQL, the only store of record."""

    url: Annotated[
        str, Meta(description="Connection URL or libpq key=value string; several hosts are allowed, as in libpq.")
    ] = "postgresql://bloom@127.0.0.1:5432/bloom_runtime"
    url_file: Annotated[str | None, Meta(description="A file that holds the URL, instead of `url`.")] = None
    pool_size: Annotated[int, Meta(ge=2, le=200, description="Connections kept for work, at the most.")] = 10
    connect_timeout: Annotated[Seconds, Meta(description="Seconds to wait for a new connection.")] = 5.0
    statement_timeout: Annotated[
        Seconds, Meta(description="Seconds that one statement may run before PostgreSQL ends it.")
    ] = 30.0


class Http(Section, frozen=True):
    """The HTTP API."""

    bind: Annotated[
        tuple[str, ...],
        Meta(min_length=1, description="Where to listen: `host:port`, `[ipv6]:port`, `:port` or `unix:/path`."),
    ] = ("127.0.0.1:5000",)
    socket_mode: Annotated[
        str, Meta(pattern="^0[0-7]{3}$", description="Mode of a Unix socket in `bind`, octal and quoted.")
    ] = "0660"
    socket_group: Annotated[str | None, Meta(description="Group of a Unix socket in `bind`.")] = None
    api_key: Annotated[
        str | None,
        Meta(
            description="The key that clients send. Without one, and without named keys or workers' tokens,"
            " authentication is off."
        ),
    ] = None
    api_key_file: Annotated[
        str | None, Meta(description="A file that holds the key, instead of `api_key`, such as /etc/bloomd/api.key.")
    ] = None
    allow_unauthenticated: Annotated[
        bool,
        Meta(description="Serve without a key beyond loopback: whoever reaches the port may do everything."),
    ] = False
    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(description="Names that Host may hold while no key is set, beside the loopback ones; `*` for any."),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(description="Peers whose X-Forwarded-For is believed: networks, or `unix:` for the Unix socket."),
    ] = ("127.0.0.0/8", "::1/128", "unix:")
    metrics_allow: Annotated[
        tuple[str, ...], Meta(description="Clients that read /metrics without the key: networks.")
    ] = ("127.0.0.0/8", "::1/128")
    public_url: Annotated[
        str | None,
        Meta(
            description="The URL by which workers reach this server, such as https://bloom.example.org:"
            " the install script holds it, and agents call back to it."
        ),
    ] = None
    max_body_bytes: Annotated[int, Meta(ge=1024, le=1 << 30, description="Bytes that a request body may have.")] = (
        8 * 1024 * 1024
    )
    max_artifact_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=1 << 36,
            description="Bytes that an artifact may have which a worker uploads."
            " Its content goes into PostgreSQL, and from there to the object store, if there is one.",
        ),
    ] = 1024 * 1024 * 1024
    drain_seconds: Annotated[
        Seconds, Meta(description="Seconds that requests under way get to finish at shutdown.")
    ] = 10.0
    session_secret: Annotated[
        str | None,
        Meta(
            description="Signs the sessions of the page. Without one, a secret is made and kept in the database;"
            " a change ends all sessions."
        ),
    ] = None
    session_secret_file: Annotated[
        str | None, Meta(description="A file that holds the secret, instead of `session_secret`.")
    ] = None


class Control(Section, frozen=True):
    """The Unix socket that bloomd-ctl talks to."""

    socket: Annotated[str, Meta(description="Path of the socket.")] = "/run/bloomd/bloomd.sock"
    group: Annotated[
        str, Meta(description="Group that owns the socket and whose members may do everything; it need not exist.")
    ] = "bloomd-admin"


class Membridge(Section, frozen=True):
    """The Membridge control plane whose agents become workers here."""

    server_url: Annotated[
        str | None,
        Meta(description="URL of the control plane, such as http://127.0.0.1:8000. Without one, there is none."),
    ] = None
    admin_key: Annotated[str | None, Meta(description="Key for the control plane.")] = None
    admin_key_file: Annotated[str | None, Meta(description="A file that holds the key, instead of `admin_key`.")] = None
    agent_key: Annotated[str | None, Meta(description="Key for the agents on the worker machines.")] = None
    agent_key_file: Annotated[str | None, Meta(description="A file that holds the key, instead of `agent_key`.")] = None
    sync_interval: Annotated[Seconds, Meta(description="Seconds between two rounds of mirroring its agents.")] = 10.0
    timeout: Annotated[Seconds, Meta(description="Seconds that one call may take.")] = 10.0
    serve: Annotated[
        str | None,
        Meta(
            description="Where bloomd serves a control plane of its own: `host:port`, such as 127.0.0.1:8000."
            " Without `server_url` it is the one that counts."
        ),
    ] = None
    serve_key: Annotated[
        str | None,
        Meta(
            description="The admin key of the control plane that is served; else `admin_key`,"
            " else one that only this daemon knows."
        ),
    ] = None
    serve_key_file: Annotated[str | None, Meta(description="A file that holds the key, instead of `serve_key`.")] = None


class Minio(Section, frozen=True):
    """MinIO, or any other S3 server, for what is too large to stay in PostgreSQL: the content of artifacts."""

    endpoint: Annotated[
        str | None, Meta(description="`host` or `host:port` (9000). Without one, there is no object store.")
    ] = None
    bucket: Annotated[str, Meta(min_length=3, description="Bucket for artifacts.")] = "bloom-artifacts"
    access_key: Annotated[str | None, Meta(description="Access key.")] = None
    secret_key: Annotated[str | None, Meta(description="Secret key.")] = None
    secret_key_file: Annotated[
        str | None, Meta(description="A file that holds the secret key, instead of `secret_key`.")
    ] = None
    region: Annotated[str, Meta(description="Region that requests are signed for.")] = "us-east-1"
    secure: Annotated[bool, Meta(description="Use TLS.")] = False
    prefix: Annotated[str, Meta(description="What the names of its objects begin with, such as `bloom/`.")] = ""
    memory_bucket: Annotated[
        str, Meta(min_length=3, description="Bucket of the agents' memory, which a backup may hold as well.")
    ] = "claude-mem"
    inline_below: Annotated[
        int, Meta(ge=0, le=1 << 30, description="Bytes below which the content of an artifact stays in PostgreSQL.")
    ] = 4096


class Backup(Section, frozen=True):
    """A backup each day, made and proven by the node that leads."""

    schedule: Annotated[
        str | None,
        Meta(
            description='When, by the clock of the machine: a quoted time of the day such as "03:30".'
            " Without one, there is none.",
        ),
    ] = None
    directory: Annotated[
        str,
        Meta(description="Where they are put, on whichever node leads: an absolute path, best on another disk."),
    ] = "/var/lib/bloomd/backups"
    keep: Annotated[int, Meta(ge=1, le=10000, description="How many of them are kept there.")] = 7
    memory: Annotated[bool, Meta(description="With the agents' memory, the bucket `minio.memory_bucket`.")] = False
    warn_after_days: Annotated[
        Days, Meta(description="Days after which it is a warning that there is no newer one that was proven.")
    ] = 2.0


class Probes(Section, frozen=True):
    """How PostgreSQL, MinIO and Membridge are watched."""

    interval: Annotated[Seconds, Meta(description="Seconds between two probes of one dependency.")] = 10.0
    timeout: Annotated[Seconds, Meta(description="Seconds that one probe may take.")] = 3.0
    fall: Annotated[int, Meta(ge=1, le=100, description="Failures in a row after which a dependency is down.")] = 2
    rise: Annotated[int, Meta(ge=1, le=100, description="Successes in a row after which it is up again.")] = 1


class Tasks(Section, frozen=True):
    """What happens to tasks."""

    retry_errors: Annotated[
        bool, Meta(description="Try a task again when a worker reports an error; `false` makes it `failed` at once.")
    ] = True
    retry_delay: Annotated[
        Seconds, Meta(description="Seconds before the second attempt; each further one waits twice as long.")
    ] = 5.0
    retry_delay_max: Annotated[Seconds, Meta(description="Seconds that no retry waits longer than.")] = 300.0
    auto_dispatch: Annotated[
        bool, Meta(description="Push queued tasks to workers that have a URL, without being asked to.")
    ] = False
    sweep_interval: Annotated[
        float, Meta(gt=0, le=5, description="Seconds between two searches for expired leases.")
    ] = 1.0
    keep_days: Annotated[
        Days | None,
        Meta(
            description="Days after its end at which a task is deleted, with its results, artifacts, leases and"
            " idempotency key, and the objects of these. Without them, it is kept for ever."
        ),
    ] = None


class Workers(Section, frozen=True):
    """The machines that do the work."""

    offline_after: Annotated[
        float, Meta(ge=5, le=86400, description="Seconds of silence after which a worker is offline.")
    ] = 60.0
    poll_interval: Annotated[
        Seconds, Meta(description="Seconds between two health polls of a worker that has a URL.")
    ] = 30.0
    allowed_networks: Annotated[
        tuple[str, ...],
        Meta(description="Networks in which worker URLs may lie. Link-local addresses never may."),
    ] = (
        "127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7",
    )  # fmt: skip


class Worker(Section, frozen=True):
    """This machine as a worker: what `bloomd worker` reads. Its options come before."""

    server: Annotated[str | None, Meta(description="URL of the bloomd that it works for.")] = None
    name: Annotated[str | None, Meta(description="Its name there; without one, the name of this machine.")] = None
    token: Annotated[str | None, Meta(description="Its token, or an API key.")] = None
    token_file: Annotated[str | None, Meta(description="A file that holds the token, instead of `token`.")] = None
    max_concurrency: Annotated[int, Meta(ge=1, le=32, description="Tasks that it runs at once.")] = 1
    labels: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...],
        Meta(max_length=64, description="What it has: a task that asks for a label goes only to workers with it."),
    ] = ()
    root: Annotated[str, Meta(description="Directory for the contexts; context hints name files in it.")] = (
        "/var/lib/bloomd-worker"
    )
    command: Annotated[
        tuple[str, ...],
        Meta(min_length=1, description="The program that does the work, with options of its own before ours."),
    ] = ("claude",)
    grace_seconds: Annotated[
        Seconds, Meta(description="Seconds that tasks under way get to finish when it is stopped.")
    ] = 30.0


class Audit(Section, frozen=True):
    """The audit trail: who did what, and when."""

    keep_days: Annotated[
        Days | None, Meta(description="Days after which an entry is deleted. Without them, it is kept for ever.")
    ] = None


class Log(Section, frozen=True):
    """What is written to stdout (info) and stderr (warnings and errors)."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="The least that is written.")] = (
        "info"
    )
    format: Annotated[
        Literal["auto", "text", "json"],
        Meta(description="`auto` is text on a terminal and JSON with NODE_ENV=production."),
    ] = "auto"


class Settings(Section, frozen=True):
    """All of it."""

    env_file: Annotated[
        str | None,
        Meta(description="A file of NAME=value lines, such as today's /etc/bloom-runtime.env; read, never run."),
    ] = None
    database: Database = Database()
    http: Http = Http()
    control: Control = Control()
    membridge: Membridge = Membridge()
    minio: Minio = Minio()
    probes: Probes = Probes()
    tasks: Tasks = Tasks()
    workers: Workers = Workers()
    worker: Worker = Worker()
    audit: Audit = Audit()
    backup: Backup = Backup()
    log: Log = Log()
