"""`bloomd worker`: from the settings to a worker that runs, and the signals that end it."""

import os
import platform
import shutil
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from uuid import uuid4

import msgspec
import structlog
import trio

from bloomd import __version__
from bloomd.errors import Misconfigured
from bloomd.logs import Logs, is_json
from bloomd.notify import Notifier
from bloomd.settings import Loaded, secrets
from bloomd.settings.model import Worker as Settings
from bloomd.worker import claude, contexts, guard, machine
from bloomd.worker.api import Server
from bloomd.worker.contexts import Contexts
from bloomd.worker.worker import Worker

log = structlog.stdlib.get_logger(__name__)


def main(loaded: Loaded, environ: Mapping[str, str] = os.environ) -> None:
    """Work until SIGTERM, SIGINT or SIGHUP and what runs has ended; a second signal gives it back at once.

    Raises:
        Misconfigured: it cannot begin with these settings; the text says what to change.
    """
    notifier = Notifier()
    settings = loaded.settings
    logs = Logs(json=is_json(settings.log.format, environ.get("NODE_ENV") == "production"), level=settings.log.level)
    logs.redact(secrets(settings))
    url = settings.worker.server
    if url is None:
        raise Misconfigured("no server is set: say --server URL, or set `worker.server`")
    program = _program(settings.worker, environ)
    worker = msgspec.structs.replace(settings.worker, command=(program, *settings.worker.command[1:]))
    root = Path(worker.root).absolute()
    lock = contexts.take(root)
    mark = uuid4().hex
    program_environ = {**claude.environment(environ), guard.WORKER: mark}
    try:
        server = Server(url, worker.name or platform.node(), worker.token)
        with guard.guarded(f"{guard.WORKER}={mark}"):
            trio.run(_serve, notifier, server, root, worker, program_environ, machine.install_method(environ))
    finally:
        os.close(lock)


def _program(worker: Settings, environ: Mapping[str, str]) -> str:
    """The path of the program: it runs in other directories than this one."""
    name = worker.command[0]
    found = shutil.which(name, path=environ.get("PATH", os.defpath))
    if found is None:
        raise Misconfigured(
            f"the program `{name}` is not there or cannot be run: install the Claude CLI so that it is in PATH,"
            " or name the program in `worker.command`"
        )
    return os.path.abspath(found)


async def _serve(
    notifier: Notifier,
    server: Server,
    root: Path,
    settings: Settings,
    program_environ: Mapping[str, str],
    install_method: str,
) -> None:
    said = {
        "agent_version": __version__,
        "os_info": machine.os_info(),
        "install_method": install_method,
        "ip_addrs": await machine.ip_addrs(server.url),
    }
    worker = Worker(server, Contexts(root), settings, environ=program_environ, said=said)
    ends = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
        ends.append(signal.SIGHUP)
    with trio.open_signal_receiver(*ends) as signals:
        failure: Misconfigured | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, signals, worker, notifier)
            nursery.start_soon(_notify, worker, notifier)
            try:
                await worker.run()
            except Misconfigured as error:
                failure = error
            nursery.cancel_scope.cancel()
    if failure:
        raise failure
    log.info("stopped")


async def _notify(worker: Worker, notifier: Notifier) -> None:
    await worker.settled.wait()
    notifier.ready(worker.summary)
    await notifier.keep_telling(lambda: worker.summary)


async def _obey(signals: AsyncIterator[int], worker: Worker, notifier: Notifier) -> None:
    draining = False
    async for number in signals:
        if draining:
            log.warning("second signal: what runs is given back")
            worker.hurry()
        else:
            log.info("stopping", signal=signal.Signals(number).name)
            notifier.stopping()
            worker.drain()
        draining = True
