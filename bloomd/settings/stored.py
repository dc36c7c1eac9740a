"""What was set through the API and is kept in the database, laid over what files and environment say.

Only two keys can be set so: the URL of Membridge and the admin key for it. The key is bound to an origin (scheme,
host and port), because a URL that someone else chose must never receive it:

    a key of            is bound to the origin of
    the database        its row `admin_key_origin`; failing that the URL in the database; failing that the one below
    file, environment   the URL that files, environment and command line say

The effective URL is the strongest one. The effective key is the strongest one that is bound to the origin of that URL,
and when there is none, no key is sent.

The rows are not an operator's text that he can correct at once: one that cannot be used is left out with a warning.
"""

from collections.abc import Mapping

from bloomd.settings.layers import Entry, Layer
from bloomd.settings.problems import Source
from bloomd.settings.urls import http_url, origin
from bloomd.settings.values import key_problem, url_problem

# The rows of the table runtime_settings that this is about.
URL_ROW, KEY_ROW, ORIGIN_ROW = "membridge_server_url", "admin_key", "admin_key_origin"

_URL, _KEY, _KEY_FILE = "membridge.server_url", "membridge.admin_key", "membridge.admin_key_file"


def lay_over(base: Layer, stored: Mapping[str, str]) -> tuple[Layer, list[str]]:
    """The base with the stored URL and key, as far as they count, and warnings."""
    layer = dict(base)
    warnings: list[str] = []
    base_url = _text(base.get(_URL))
    stored_url, stored_key = stored.get(URL_ROW) or None, stored.get(KEY_ROW) or None

    if stored_url is not None and (problem := url_problem(stored_url)):
        warnings.append(f"{URL_ROW} in the database is not used: {problem}")
    elif stored_url is not None and not _is_option(base.get(_URL)):
        layer[_URL] = Entry(http_url(stored_url), Source("database", name=URL_ROW))
    if stored_key is not None and (problem := key_problem(stored_key)):
        warnings.append(f"{KEY_ROW} in the database is not used: {problem}")
        stored_key = None

    candidates = [(base.get(_KEY), _origin(base_url))]
    if stored_key is not None:
        entry = Entry(stored_key, Source("database", name=KEY_ROW))
        candidates.insert(0, (entry, _origin(stored.get(ORIGIN_ROW) or stored_url or base_url)))
    wanted = _origin(_text(layer.get(_URL)))
    given = [(entry, bound) for entry, bound in candidates if entry is not None and entry.value is not None]
    key = next((entry for entry, bound in given if bound == wanted), None)
    if given:
        layer.pop(_KEY, None)
        if key is None or key.source.kind == "database":
            layer.pop(_KEY_FILE, None)
        if key is not None:
            layer[_KEY] = key
        else:
            was = " and ".join(sorted({bound or "no usable URL" for _, bound in given}))
            warnings.append(
                f"membridge.admin_key is not sent to {wanted or 'any server'}: it was given for {was};"
                " set the key for this server as well"
            )
    return layer, warnings


def _text(entry: Entry | None) -> str | None:
    return entry.value if entry is not None and isinstance(entry.value, str) else None


def _is_option(entry: Entry | None) -> bool:
    return entry is not None and entry.source.kind == "option"


def _origin(url: str | None) -> str | None:
    try:
        return None if url is None else origin(url)
    except ValueError:
        return None
