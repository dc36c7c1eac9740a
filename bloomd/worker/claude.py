"""The Claude CLI, and whatever speaks its protocol: how it is called, and what its end means. Pure.

    PROGRAM --print --output-format json [--resume SESSION]      the prompt on stdin

It answers with one JSON object on stdout (`result`, `is_error`, `usage`, `total_cost_usd`, `session_id`, ...), maybe
after lines of another kind. What is no such object is an answer in plain text.
"""

import json
import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from bloomd.exchange import MIB
from bloomd.worker.limits import Limit, limit_in
from bloomd.worker.process import STDOUT_LIMIT, Ended

# Of an error: enough to see what went wrong, little enough for a list of tasks.
ERROR_LENGTH = 4000

# What costs more was no number of dollars.
MOST_USD = 1e6

CUT_NOTE = f"\n\n[bloomd: the output was longer than {STDOUT_LIMIT // MIB} MiB and was cut off here]"

# The shortest that is taken for a secret.
SECRET_LENGTH = 16

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD")
_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SESSION_GONE = re.compile(
    r"no conversation found|requires a valid session id|prompt is too long|context (window |length )?(limit|exceeded)"
    r"|conversation (is )?too long|exceeds? (the )?context",
    re.IGNORECASE,
)

_TOKENS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")

# What a program gets of our environment: enough to be itself, and nothing that is ours.
_KEPT = {
    "HOME", "PATH", "LANG", "LANGUAGE", "TZ", "USER", "LOGNAME", "SHELL", "TMPDIR",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS",
}  # fmt: skip
_KEPT_BEGINNINGS = ("LC_", "XDG_", "ANTHROPIC_", "CLAUDE_")


class Answered(msgspec.Struct, frozen=True):
    """The attempt has a result."""

    output: str
    tokens: int | None = None
    """See `tokens_in`; None when it did not say."""
    cost_usd: float | None = None
    session: str | None = None
    """Of the conversation that this was a part of."""
    cut: bool = False


class Failed(msgspec.Struct, frozen=True):
    """The attempt came to nothing."""

    message: str
    tokens: int | None = None
    cost_usd: float | None = None


class SessionGone(msgspec.Struct, frozen=True):
    """The conversation that was to be continued is not there any more, or is too long for another word."""


Verdict = Answered | Failed | SessionGone | Limit


def command(program: Sequence[str], session: str | None) -> list[str]:
    """The program with its options, to begin a conversation or to continue one."""
    resume = ["--resume", session] if session else []
    return [*program, "--print", "--output-format", "json", *resume]


def is_session(text: str) -> bool:
    """Whether this can be the id of a conversation, and nothing that the program would take for an option."""
    return _SESSION.fullmatch(text) is not None


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """What the program gets of our environment."""
    return {name: value for name, value in ours.items() if name in _KEPT or name.startswith(_KEPT_BEGINNINGS)}


def secrets(environ: Mapping[str, str]) -> list[str]:
    """The values in its environment that nobody else may read; a short one is a setting, such as a number of tokens."""
    return [value for name, value in environ.items() if _SECRET.search(name) and len(value) >= SECRET_LENGTH]


def redacted(text: str, secrets: Sequence[str]) -> str:
    """The text without these: what a program says is stored, and read by others."""
    for secret in secrets:
        text = text.replace(secret, "****")
    return text


def without(verdict: "Verdict", secrets: Sequence[str]) -> "Verdict":
    """The verdict with its words redacted."""
    match verdict:
        case Answered():
            return msgspec.structs.replace(verdict, output=redacted(verdict.output, secrets))
        case Failed():
            return msgspec.structs.replace(verdict, message=redacted(verdict.message, secrets))
        case Limit():
            return msgspec.structs.replace(verdict, why=redacted(verdict.why, secrets))
        case SessionGone():
            return verdict


def verdict(ended: Ended, *, session: str | None, seconds: float, now: float) -> Verdict:
    """What the end of a run means.

    Args:
        session: the conversation that it was to continue.
        seconds: what it was allowed to take.
        now: epoch seconds, for a limit that names a time of day.
    """
    said = _answer_in(ended.stdout)
    text = clean(_text_of(said) if said is not None else ended.stdout.decode(errors="replace"))
    tokens, cost = tokens_in(said), _cost(said)
    if ended.timed_out:
        return Failed(f"it did not finish within {seconds:g} s (policy.timeout_sec)", tokens, cost)
    failed = ended.exit_code != 0 or (said is not None and said.get("is_error") is True)
    if not failed:
        if not text.strip():
            return Failed("it ended without an answer" + _because(ended.stderr), tokens, cost)
        return Answered(text + (CUT_NOTE if ended.cut else ""), tokens, cost, _session(said), ended.cut)
    stderr = clean(ended.stderr.decode(errors="replace")).strip()
    if session and any(map(_SESSION_GONE.search, (text[:ERROR_LENGTH], stderr))):
        return SessionGone()
    # Beside an answer stderr is of the program's tools, too; without one what came before the last line may be.
    for words in (text,) if said is not None else (text, stderr, stderr.rpartition("\n")[2]):
        if limit := limit_in(words, now):
            return limit
    if said is not None and said.get("api_error_status") == 429:
        return Limit(text.strip()[:200] or "too many requests")
    useful = (text if said is not None and text.strip() else stderr or text).strip()
    how = _how(ended.exit_code)
    return Failed("; ".join(part for part in (how, useful[-ERROR_LENGTH:]) if part), tokens, cost)


def clean(text: str) -> str:
    """The text without what PostgreSQL and UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _answer_in(stdout: bytes) -> dict[str, Any] | None:
    """The answer of the protocol: all of it, or its last line."""
    stripped = stdout.strip()
    for candidate in (stripped, stripped.rpartition(b"\n")[2]):
        if candidate[:1] not in (b"{", b"["):
            continue
        try:
            said = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        for item in reversed(cast("list[Any]", said if isinstance(said, list) else [said])):
            if isinstance(item, dict):
                answer = cast("dict[str, Any]", item)
                if "is_error" in answer or answer.get("type") == "result":
                    return answer
    return None


def _text_of(said: dict[str, Any]) -> str:
    result = said.get("result")
    if isinstance(result, str):
        return result
    if result is not None:
        return json.dumps(result, ensure_ascii=False)
    errors = said.get("errors")
    if isinstance(errors, list):
        return "; ".join(str(error) for error in cast("list[Any]", errors))
    return str(said.get("subtype", "")) if said.get("is_error") is True else ""


def tokens_in(said: Mapping[str, Any] | None) -> int | None:
    """All tokens that the model has read or written, those from and for its cache included; None when it did not say.

    This is what a budget in tokens is about: the size of the work. It is the same whether a cache was warm, and nearly
    all that a conversation reads comes from there: without it a budget would bound next to nothing.
    """
    usage = (said or {}).get("usage")
    if not isinstance(usage, dict):
        return None
    counts = [cast("dict[str, Any]", usage).get(name) for name in _TOKENS]
    known = [count for count in counts if isinstance(count, int) and not isinstance(count, bool) and count >= 0]
    return min(sum(known), 1 << 53) if known else None


def _cost(said: dict[str, Any] | None) -> float | None:
    cost = (said or {}).get("total_cost_usd")
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost <= MOST_USD:
        return None
    return float(cost)


def _session(said: dict[str, Any] | None) -> str | None:
    session = (said or {}).get("session_id")
    return session if isinstance(session, str) and is_session(session) else None


def _how(exit_code: int) -> str:
    """How it ended, where that says something."""
    if exit_code == 0:
        return ""
    if exit_code > 0:
        return f"exit code {exit_code}"
    try:
        return f"ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"ended by signal {-exit_code}"


def _because(stderr: bytes) -> str:
    words = clean(stderr.decode(errors="replace")).strip()
    return f": {words[-ERROR_LENGTH:]}" if words else ""
