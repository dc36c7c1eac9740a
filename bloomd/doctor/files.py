"""The configuration and its files: what they say, and who may read and change them."""

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from bloomd.doctor.case import Case
from bloomd.doctor.finding import Found, Skip, error, ok, warning
from bloomd.doctor.users import User
from bloomd.errors import one_line
from bloomd.settings import SECRETS, SettingsError
from bloomd.settings.conninfo import passwords
from bloomd.settings.files import readable_by_everybody
from bloomd.settings.keys import flatten

# The environment file of today's runtime. Where an init script has the daemon read it, the daemon alone knows that.
TODAYS = Path("/etc/bloom-runtime.env")


def settings_file(case: Case) -> Found:
    """The configuration can be used, by the daemon too, and not everybody can change it."""
    trouble, file = case.loaded.trouble, case.config
    if file and os.path.exists(file) and not os.access(file, os.R_OK):
        return error(f"you may not read {file}", f"run it as root: sudo bloomd doctor{case.option}")
    if trouble:
        more = len(trouble.problems) - 1 if isinstance(trouble, SettingsError) else 0
        also = f" (and {more} more)" if more else ""
        return error(f"the settings cannot be used: {one_line(trouble)}{also}", f"bloomd check{case.option}")
    if file is None:
        return ok("there is no settings file: the environment and the defaults count")
    user = case.user
    if not user.may_read(file):
        return error(f"the user {user.name} may not read {file}", _let_read(user, [file]))
    if file.stat().st_mode & stat.S_IWOTH:
        return error(f"everybody on this machine may change {file}", f"chmod o-w {_quoted([file])}")
    return ok(f"{file} can be used")


def secrets_mode(case: Case) -> Found:
    """No file with a secret of ours can be read by everybody."""
    env_file = _env_file(case)
    files = [file for file in dict.fromkeys(_files_of_secrets(case)) if file != env_file]
    if not files:
        raise Skip("no file holds a secret")
    return _closed(files, case.user)


def env_file_mode(case: Case) -> Found:
    """The same of the environment file, which is another program's as well."""
    env_file = _env_file(case)
    if env_file is not None:
        return _closed([env_file], case.user)
    if TODAYS.exists():
        return warning(
            f"{TODAYS} is there, and no env_file is named: it was not looked at",
            f"bloomd doctor{case.option} --env-file {TODAYS}, or name it as env_file in bloomd.yaml, or remove it",
        )
    raise Skip("no env_file is named")


def hidden_settings(case: Case) -> Found:
    """What an operator writes into the file counts."""
    rows, loaded = case.stored.value, case.loaded.value
    now = loaded.with_stored(rows)
    hidden = {
        key: loaded.sources[key]
        for key, source in now.sources.items()
        if source.kind == "database" and loaded.sources[key].kind not in ("default", "preset")
    }
    if not hidden:
        return ok("nothing that was set through the API hides what files or environment say")
    told = ", ".join(f"{key} of {source.where}" for key, source in hidden.items())
    rows_of = " and ".join(f"/api/runtime/config/{now.sources[key].name}" for key in hidden)
    return warning(f"what was set through the API hides {told}", f"DELETE {rows_of} with an API key unsets it")


def _closed(files: list[Path], user: User) -> Found:
    """The daemon may read them, and not everybody."""
    open_ones = [file for file in files if _everybody_may_read(file)]
    if open_ones:
        return error(
            f"everybody on this machine may read the secrets in {_listed(open_ones)}",
            f"chmod o-rwx {_quoted(open_ones)}",
        )
    closed = [file for file in files if not user.may_read(file)]
    if closed:
        return error(f"the user {user.name} may not read {_listed(closed)}", _let_read(user, closed))
    return ok(f"only owner and group may read {_listed(files)}")


def _everybody_may_read(file: Path) -> bool:
    """Whether its mode says so, and everybody gets to it through all the directories above."""
    return readable_by_everybody(file) and all(
        directory.stat().st_mode & stat.S_IXOTH for directory in file.resolve().parents
    )


def _let_read(user: User, files: list[Path]) -> str:
    return f"chgrp {user.group} {_quoted(files)} && chmod 640 {_quoted(files)}"


def _files_of_secrets(case: Case) -> Iterator[Path]:
    values = flatten(case.loaded.value.settings)
    for key in SECRETS:
        source, value = case.loaded.value.sources[key], values[key]
        file = source.secret_file or source.file
        if file and value and (key != "database.url" or any(passwords(str(value))) or source.secret_file):
            yield Path(file)


def _env_file(case: Case) -> Path | None:
    loaded = case.loaded.value
    if loaded.settings.env_file is None:
        return None
    named_in = loaded.sources["env_file"].file
    return (Path(named_in).parent if named_in else Path()) / loaded.settings.env_file


def _listed(paths: list[Path]) -> str:
    return " and ".join(map(str, paths))


def _quoted(paths: list[Path]) -> str:
    return " ".join(shlex.quote(str(path)) for path in paths)
