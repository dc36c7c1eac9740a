"""What differs between two tellings."""

from collections.abc import Iterable

import msgspec

from bloomd.settings.display import Shown, shown
from bloomd.settings.keys import flatten
from bloomd.settings.model import Settings


class Change(msgspec.Struct, frozen=True):
    """One key whose value differs, both values as they may be shown: two secrets can look the same."""

    key: str
    old: Shown
    new: Shown


def changed(old: Settings, new: Settings) -> list[Change]:
    """The keys that differ, in the order of the model."""
    before, after = flatten(old), flatten(new)
    return [Change(key, shown(key, before[key]), shown(key, after[key])) for key in before if before[key] != after[key]]


def sections(changes: Iterable[Change]) -> frozenset[str]:
    """The sections in which something works differently now.

    Where a value was read (`env_file`, `api_key_file`) makes no difference by itself.
    """
    return frozenset(change.key.partition(".")[0] for change in changes if not change.key.endswith("_file"))
