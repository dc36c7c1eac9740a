"""What bloomd may be told, where it was told, and what differs between two tellings."""

from bloomd.settings.model import Settings
from bloomd.settings.problems import Problem, SettingsError, Source
from bloomd.settings.sources import Loaded, load

__all__ = ["Loaded", "Problem", "Settings", "SettingsError", "Source", "load"]
