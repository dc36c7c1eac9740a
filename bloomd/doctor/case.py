"""What the checks look at: the settings, the database, the daemon, the peers.

Each is a `Fact`, which `gather` finds out: a check that asks for one that there is not is skipped.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import trio

from bloomd.control.answers import Status
from bloomd.control.client import CannotReach, Client, ControlFailure
from bloomd.doctor.fact import Fact
from bloomd.doctor.finding import Skip
from bloomd.doctor.users import User, daemon_user
from bloomd.errors import Misconfigured, Unavailable
from bloomd.exchange import Answer
from bloomd.membridge.server.served import Served
from bloomd.postgres.migrate import SchemaStatus
from bloomd.runtime.database import Database
from bloomd.settings import Loaded, Settings, model

# The daemon answers from memory; one that does not is told apart from one that is not there.
ASK_SECONDS = 3.0


class Stuck(Unavailable):
    """The daemon is there, and says nothing."""


class Case:
    """One node, as it is found."""

    def __init__(self, config: Path | None, option: str) -> None:
        self.config = config
        self.option = option
        """How a command names the configuration, with a blank before it."""
        self.loaded = Fact[Loaded]("the settings cannot be read")
        self.server = Fact[int]("PostgreSQL cannot be reached")
        """Its version, as libpq has it: 150004 is 15.4."""
        self.schema = Fact[SchemaStatus]("it is not known which schema the database has")
        self.stored = Fact[Mapping[str, str]]("what was set through the API is not known")
        self.status = Fact[Status]("no daemon answers")
        self.membridge = Fact[Answer]("Membridge cannot be reached")
        self.minio = Fact[Answer]("MinIO cannot be reached")
        self.certificate = Fact[float]("its certificate is not accepted")
        """When it expires, in epoch seconds."""
        self.front = Fact[Answer]("nginx does not answer")
        """What bloomd says of its health through the nginx of this machine."""
        self.connected = Database()
        """Open once `server` is known."""

    @property
    def settings(self) -> Settings:
        """Those in force, as far as a command can know: what was set through the API included."""
        return self.loaded_with_stored().settings

    @property
    def any_database(self) -> Database:
        """Whatever is in it; to be read only."""
        self.server.need()
        return self.connected

    @property
    def database(self) -> Database:
        """With our tables in it; to be read only."""
        if self.schema.value.pending:
            raise Skip("the database does not have this version's schema")
        return self.connected

    def of_process(self, what: Literal["clock_jumps", "notifications", "log_files"]) -> Any:
        """What a daemon tells of its process since it tells it. Raises Skip for an older one."""
        process = self.status.value["process"]
        if what not in process:
            raise Skip("the daemon that runs is older and does not tell that")
        return process[what]

    @property
    def none_runs(self) -> bool:
        """Whether no daemon runs, as far as its control socket tells: one that is stuck or refuses to answer does."""
        return self.status.troubled and not self.status.refused and not isinstance(self.status.trouble, Stuck)

    def need_service(self, name: str) -> None:
        """Raises Skip unless a daemon runs, and this service of it."""
        if any(each["name"] == name and each["state"] != "running" for each in self.status.value["services"]):
            raise Skip(f"the service {name} of the daemon does not run")

    @property
    def user(self) -> User:
        """Whom the daemon runs as."""
        return daemon_user(self.control_socket)

    @property
    def control_socket(self) -> str:
        """Where the daemon is asked: with settings that cannot be read, at the default, if something is there."""
        usual = model.Control().socket
        return usual if self.loaded.troubled and os.path.exists(usual) else self.settings.control.socket

    @property
    def membridge_settings(self) -> model.Membridge:
        """Of the control plane that counts."""
        served = Served(self.loaded_with_stored)
        settings = served.for_client()
        if settings.server_url is None:
            raise Skip("no Membridge is configured")
        if settings.admin_key == served.generated:
            raise Skip("this bloomd serves its Membridge itself, by a key that nobody else knows")
        return settings

    async def ask_daemon(self) -> Status:
        """What `bloomd-ctl status` would show."""

        def ask() -> Status:
            with Client(self.control_socket, timeout=ASK_SECONDS) as client:
                return client.call("status")

        try:
            return await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
        except CannotReach as error:
            stuck = isinstance(error.__cause__, TimeoutError | BlockingIOError)
            raise (Stuck if stuck else Unavailable)(str(error)) from error
        except ControlFailure as error:
            raise Misconfigured(str(error)) from error

    def loaded_with_stored(self) -> Loaded:
        """The settings, with what was set through the API where that is known."""
        return self.loaded.value.with_stored(self.stored.value if self.stored.known else {})
