"""Membridge and MinIO: whether they are there, have our time, and take our keys."""

from email.utils import parsedate_to_datetime

from bloomd.doctor.case import Case
from bloomd.doctor.clocks import compared
from bloomd.doctor.fact import SECONDS, Fact
from bloomd.doctor.finding import Found, Skip, error, ok
from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.exchange import Answer
from bloomd.membridge.client import MembridgeClient
from bloomd.objects.store import Store
from bloomd.supervisor import Backoff

# Between two tries at a moment at which somebody waits for the answer.
RETRY = Backoff(first=0.1, cap=0.1)


def membridge_reachable(case: Case) -> Found:
    """It answers, whatever it says."""
    return _reachable(case.membridge, "Membridge", "start Membridge, or correct membridge.server_url")


def membridge_time(case: Case) -> Found:
    """It has our time, by which it says when it saw an agent last."""
    return _time(case.membridge, "Membridge")


async def membridge_key(case: Case) -> Found:
    """It takes the admin key."""
    case.membridge.need()
    settings = case.membridge_settings
    client = MembridgeClient(str(settings.server_url), settings.admin_key, timeout=SECONDS, retry=RETRY)
    try:
        await client.check_key()
    except Misconfigured as trouble:
        return error(
            one_line(trouble),
            "set membridge.admin_key (MEMBRIDGE_ADMIN_KEY) to Membridge's own, then bloomd-ctl reload",
        )
    except Unavailable as trouble:
        return error(one_line(trouble), "see Membridge's log for why it does not list its agents")
    return ok("Membridge takes the admin key")


def minio_reachable(case: Case) -> Found:
    """It answers, whatever it says."""
    return _reachable(case.minio, "the object store", "start MinIO, or correct minio.endpoint")


def minio_time(case: Case) -> Found:
    """It has our time, or it will refuse our signatures."""
    return _time(case.minio, "the object store")


async def minio_bucket(case: Case) -> Found:
    """The bucket is there, and our keys open it."""
    case.minio.need()
    settings = case.settings.minio
    try:
        await Store(settings).check_bucket()
    except Unavailable as trouble:
        return error(one_line(trouble), "see the log of the object store")
    except Misconfigured as trouble:
        return error(one_line(trouble), f"mc mb ALIAS/{settings.bucket}, or correct the keys; then bloomd-ctl reload")
    return ok(f"the keys open the bucket {settings.bucket}")


def _reachable(fact: Fact[Answer], who: str, fix: str) -> Found:
    trouble = fact.trouble
    return ok(f"{who} answers") if trouble is None else error(one_line(trouble), fix)


def _time(fact: Fact[Answer], who: str) -> Found:
    answer = fact.value
    try:
        theirs = parsedate_to_datetime(answer.date or "").timestamp()
    except ValueError:
        raise Skip(f"{who} does not say what time it is") from None
    return compared(who, theirs, fact.asked, fact.answered)
