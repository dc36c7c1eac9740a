"""Settings as they may be shown: to an operator, in an answer, in a log. No secret leaves by this door."""

from typing import cast

import msgspec

from bloomd.settings.conninfo import MASK, masked_conninfo, passwords
from bloomd.settings.keys import SECRETS, flatten
from bloomd.settings.model import Settings
from bloomd.settings.problems import Kind
from bloomd.settings.sources import Loaded

# A value as it is shown: as it is, or masked.
Shown = str | int | float | bool | tuple[str, ...] | None

# The secret of which a part is shown: `GET /config` of today's runtime shows it so, and people compare by that.
_RECOGNISABLE = "membridge.admin_key"


class Setting(msgspec.Struct, frozen=True):
    """One key with its effective value and where that was told."""

    key: str
    value: Shown
    source: Kind
    where: str | None
    default: bool


def describe(loaded: Loaded) -> list[Setting]:
    """Every key there is, in the order of the model, secrets masked."""
    values = flatten(loaded.settings)
    return [
        Setting(name, shown(name, values[name]), source.kind, source.where, source.kind == "default")
        for name, source in loaded.sources.items()
    ]


def shown(key: str, value: object) -> Shown:
    """The value of a key as it may be shown."""
    if isinstance(value, str) and key == "database.url":
        return masked_conninfo(value)
    if isinstance(value, str) and key in SECRETS:
        return masked(value) if key == _RECOGNISABLE else MASK
    return cast("Shown", value)


def masked(value: str) -> str:
    """Enough of a secret to recognise it: the first and last four characters, or none of a short one."""
    return f"{value[:4]}{MASK}{value[-4:]}" if len(value) > 11 else MASK


def secrets(settings: Settings) -> list[str]:
    """Every text that no log may hold, longest first, so that one inside another is not left over in part.

    A short one is as good as a long one here: who redacts a password of three letters garbles words, and should.
    """
    values = flatten(settings)
    texts = {value for key in SECRETS if key != "database.url" and isinstance(value := values[key], str)}
    texts |= set(passwords(settings.database.url))
    if settings.minio.access_key is not None:
        texts.add(settings.minio.access_key)  # shown to operators, as a user name is, and to nobody else
    return sorted(texts, key=lambda text: (-len(text), text))
