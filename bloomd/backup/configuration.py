"""The files of the configuration: which there are, and how they come back."""

import os
from pathlib import Path

from bloomd.backup.archive import CONFIGURATION, Archive
from bloomd.errors import Misconfigured, Unavailable
from bloomd.settings import Loaded


def files_of(loaded: Loaded, config: Path | None) -> list[Path]:
    """The files of the settings, and those of their secrets.

    Args:
        config: the configuration file, which need not have set anything.
    """
    found = {file for source in loaded.sources.values() for file in (source.file, source.secret_file) if file}
    if loaded.settings.env_file is not None:  # also one whose values something else overrides
        named_in = loaded.sources["env_file"].file
        found.add(str((Path(named_in).parent if named_in else Path()) / loaded.settings.env_file))
    return sorted({Path(file).absolute() for file in [*found, *([config] if config else [])]})


def refuse_to_replace(archive: Archive | None, directory: Path) -> None:
    """Raise, before anything is done, when the files cannot be put there.

    Raises:
        Misconfigured: a file is there already, or it is no directory, or the backup has no such files.
    """
    if archive is None:
        raise Misconfigured("a plain dump has no configuration: restore it without --config")
    if directory.exists() and not directory.is_dir():
        raise Misconfigured(
            f"{directory} is a file: --config names the directory for the backup's configuration;"
            " that of this machine is -c FILE"
        )
    for place in places(archive, directory):
        if os.path.lexists(place):
            raise Misconfigured(f"{place} is there already, and is not replaced: name another directory")


def restore(archive: Archive, directory: Path) -> dict[Path, str]:
    """Write the files into a directory, readable by nobody else; where each was.

    Raises:
        Unavailable: they cannot be written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for place, member in places(archive, directory).items():
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                for data in archive.chunks(member):
                    file.write(data)
    except OSError as error:
        raise Unavailable(f"{directory}: {error.strerror}") from error
    told = archive.manifest.configuration
    return {place: told.get(member, "") for place, member in places(archive, directory).items()}


def places(archive: Archive, directory: Path) -> dict[Path, str]:
    """Where each file goes: under its own name, or with its number before that when two have the same."""
    numbered = {member: member.partition("/")[2] for member in archive.within(CONFIGURATION)}
    names = [name.partition("-")[2] for name in numbered.values()]
    found: dict[Path, str] = {}
    for member, name in numbered.items():
        own = name.partition("-")[2]
        found[directory / (own if names.count(own) == 1 and own not in (".", "..") else name)] = member
    return found
