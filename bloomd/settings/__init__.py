"""What bloomd may be told, where it was told, and what differs between two tellings.

Every setting has a dotted key (`http.bind`), a default, and several places in which it can be told. The strongest
place that tells it wins::

      option        the command line of `bloomd dev`              strongest
      database      set through the API: Membridge's URL and admin key, on every node at once
      environment   DATABASE_URL, PORT, ...: the names of today's runtime
      env_file      the same names in a file, which the YAML file names
      file          bloomd.yaml
      preset        what `bloomd dev` presumes
      default       the model                                     weakest

`load` reads them all and answers with `Loaded`: the `Settings`, the `Source` of each key, and warnings. Or it raises
one `SettingsError` with everything that is known to be wrong, each `Problem` at its line and column. Not known is what
stands in a file that is not YAML or cannot be read, and whether keys fit together while one of them is wrong by itself
or may be told by such a file. A value that a stronger place replaces has its type checked, and nothing more::

      bloomd.yaml ──▶ node tree ──▶ values ─┐
      env_file, environment ──▶ values ─────┼─▶ overlay ──▶ secret files, PORT ──▶ rules ──▶ + database ──▶ Loaded
      preset, options ──▶ values ───────────┘   (layers)                          (check)   (stored)

What holds:

- Nothing is half loaded. A reload loads first; when that raises, nothing has changed. It reads every file again, the
  env_file and the secret files included; equal `Settings` mean that nothing has changed.
- What the API sets arrives at run time: `Loaded.with_stored` lays the rows over what was loaded, reads nothing and
  never fails.
- A secret and the file that holds it (`api_key`, `api_key_file`) are one setting told in two ways. In one place they
  contradict each other; between places the stronger one counts.
- Membridge's admin key goes to the origin that it was given for and to no other (`bloomd.settings.stored`).
- An empty environment variable is not set. A name that means nothing here is somebody else's.
- No error, no warning, no `repr` and nothing that `describe` and `changed` return holds a secret: it shows as `****`.
  Of Membridge's admin key, when it has twelve characters or more, `describe` and `changed` show the first and the last
  four, as `GET /config` does. A key is a secret when the model gives it a `_file` twin (`SECRETS`).

To add a setting, add a field to the model; everything else, the example file and the manual page included, follows.
"""

from bloomd.settings.binds import Tcp, Unix, parse_bind
from bloomd.settings.diff import Change, changed, sections
from bloomd.settings.display import Setting, describe, masked, secrets
from bloomd.settings.keys import SECRETS
from bloomd.settings.model import Settings
from bloomd.settings.problems import Kind, Problem, SettingsError, Source
from bloomd.settings.sources import Loaded, load
from bloomd.settings.urls import http_url, origin
from bloomd.settings.values import key_problem, url_problem

__all__ = [
    "SECRETS",
    "Change",
    "Kind",
    "Loaded",
    "Problem",
    "Setting",
    "Settings",
    "SettingsError",
    "Source",
    "Tcp",
    "Unix",
    "changed",
    "describe",
    "http_url",
    "key_problem",
    "load",
    "masked",
    "origin",
    "parse_bind",
    "secrets",
    "sections",
    "url_problem",
]
