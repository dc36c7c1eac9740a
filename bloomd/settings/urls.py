"""URLs that secrets are sent to or that others are given: what is allowed in one, and whom it names."""

import re
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}

# Only characters about which all URL parsers agree; an international name is written in its ASCII form (xn--...).
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_CHARACTERS = re.compile(r"[A-Za-z0-9._~:/\[\]@!$&'()*+,;=%?#-]*")


def http_url(url: str) -> str:
    """The URL without a slash at its end.

    Raises ValueError with a sentence, which does not repeat the URL.
    """
    problem = "expected a URL such as https://host.example.org:8000"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(problem) from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise ValueError("expected a URL that begins with http:// or https://")
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise ValueError("expected a URL without a user name and password; the key has a place of its own")
    if not host or port == 0 or not _HOST.fullmatch(host) or not _CHARACTERS.fullmatch(url):
        raise ValueError(problem)
    if ("[" in parts.netloc) != (":" in host):  # brackets are for IPv6 addresses only
        raise ValueError(problem)
    if "?" in url or "#" in url:
        raise ValueError("expected a URL that ends with its host, port or path: no `?` and no `#`")
    return url.rstrip("/")


def origin(url: str) -> str:
    """Scheme, host and port of a URL: what a key that was given for the URL is bound to.

    Two URLs have the same origin exactly if these are the same; `http://host` and `http://host:80` have.
    Raises ValueError for anything that `http_url` refuses.
    """
    parts = urlsplit(http_url(url))
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = "" if parts.port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"
