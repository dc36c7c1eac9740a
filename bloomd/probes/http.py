"""One HTTP GET for probes: a fresh connection, a deadline, a bounded answer, no redirect followed.

By asks where it is installed: it pools nothing, which is what a probe wants, and being another library than the one
that the daemon works with, it does not share its faults. By httpx otherwise. Both do the same, by the same tests.
"""

from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import trio

from bloomd.errors import Unavailable
from bloomd.exchange import KIB, USER_AGENT, exchange, size, trust, why

try:
    import asks as _asks  # pyright: ignore[reportMissingTypeStubs]  # asks has none

    asks: ModuleType | None = _asks
except ImportError:
    asks = None

# A health answer has a few hundred bytes; the web page of somebody else may have more, and says nothing.
ANSWER_LIMIT = 64 * KIB

# A probe has a deadline of its own, which comes sooner.
LONGEST_SECONDS = 60.0


async def get(url: str, timeout: float = LONGEST_SECONDS) -> tuple[int, bytes]:
    """Status and body of the answer.

    Raises:
        Unavailable: there was no answer, or none that can be used.
    """
    return await (get_by_httpx if asks is None else get_by_asks)(url, timeout)


async def get_by_httpx(url: str, timeout: float) -> tuple[int, bytes]:
    answer = await exchange("GET", url, who=where(url), timeout=timeout, limit=ANSWER_LIMIT)
    return answer.status, answer.body


async def get_by_asks(url: str, timeout: float) -> tuple[int, bytes]:
    body = bytearray()
    library: Any = asks
    # Host as well: asks makes it from the address up to its first colon, which no IPv6 address survives.
    host = urlsplit(url).netloc.rpartition("@")[2]
    headers = {"Host": host, "Accept-Encoding": "identity", "User-Agent": USER_AGENT}

    async def take(chunk: bytes) -> None:
        body.extend(chunk)
        if len(body) > ANSWER_LIMIT:
            raise _TooLongError

    try:
        with trio.fail_after(timeout):
            answer = await library.get(
                url,
                headers=headers,
                callback=take,
                follow_redirects=False,
                retries=0,
                connection_timeout=timeout + 1,  # the one deadline is ours
                ssl_context=trust(),
            )
        return int(answer.status_code), bytes(body)
    except trio.TooSlowError as error:
        raise Unavailable(f"{where(url)}: no answer within {timeout:.3g} s") from error
    except _TooLongError as error:
        raise Unavailable(f"{where(url)}: its answer is longer than {size(ANSWER_LIMIT)}") from error
    except OSError as error:
        raise Unavailable(f"{where(url)}: {why(error)}") from error
    except Exception as error:  # asks checks little of what a peer sends: an odd header can raise nearly anything
        raise Unavailable(f"{where(url)}: its answer is not HTTP, or incomplete") from error


class _TooLongError(Exception):
    pass


def where(url: str) -> str:
    """The server in a sentence: no user, password, path or query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
