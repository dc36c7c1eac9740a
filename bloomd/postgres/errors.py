"""The one boundary between psycopg's errors and everybody else's.

What a statement may rightly raise (a violated constraint, a deadlock, a statement that ran out of time) passes through
unchanged: only the code that sent the statement knows what it means. All else becomes one of two shared types:
`Unavailable` (the server is away, restarting, full or frozen: try again) and `Misconfigured` (it answers, but refuses
us for a reason that only a person can remove).
"""

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from bloomd.errors import Misconfigured, Unavailable
from bloomd.postgres.conninfo import BadConninfo

CREDENTIALS = "correct the user and the password in the database URL"

# While connecting, libpq hands over the server's message but not its SQLSTATE, so the text has to tell. A server that
# speaks another language than English is therefore taken for one that is away, its own words in the error.
_REFUSALS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern, re.IGNORECASE), fix)
    for pattern, fix in [
        (r"password authentication failed", CREDENTIALS),
        (r"no password supplied", "the server wants a password: put one into the database URL, or into ~/.pgpass"),
        (r'role "[^"]*" does not exist', "create the role, or correct the user in the database URL"),
        (r'database "[^"]*" does not exist', "create it (`createdb NAME`), or correct the name in the database URL"),
        (r"is not permitted to log in", "allow it with `ALTER ROLE ... LOGIN`, or use another user"),
        (r"pg_hba\.conf", "add a line for this client, user and database to the server's pg_hba.conf"),
        (r"(peer|ident) authentication failed", "connect as that system user, or with a password over host and port"),
        (r"authentication failed for user", CREDENTIALS),
        (r"permission denied for database", "allow it with `GRANT CONNECT ON DATABASE ... TO ...`"),
        (r"does not support SSL", "switch TLS on in the server, or lower sslmode in the database URL"),
        (
            r"certificate|root\.crt",
            "give sslrootcert the certificate authority of the server, and use a host name that its certificate has",
        ),
        (
            r"unrecognized configuration parameter|invalid value for parameter|invalid command-line|to set parameter",
            "correct `options` in the database URL",
        ),
        (r"invalid .*value|invalid .*option", "correct the parameters in the database URL"),
    ]
]

# The classes of SQLSTATE with which a statement finds out that the server is not there for anybody now:
# 08 connection exception, 53 insufficient resources (disk, memory, connections), 58 system error.
_AWAY_CLASSES = ("08", "53", "58")
# 57P01 admin shutdown, 57P02 crash shutdown, 57P03 cannot connect now, 57P04 database dropped, 57P05 idle timeout,
# 25P03 idle in transaction timeout, 25P04 transaction timeout: the server has closed this session;
# 25006 read only: this server has become a standby, or is kept from writing by its administrator.
_AWAY_STATES = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04", "25006"})


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt at connecting that failed."""

    host: str
    where: str
    text: str

    @property
    def fix(self) -> str | None:
        """What a person has to do about it, when only a person can."""
        return next((fix for pattern, fix in _REFUSALS if pattern.search(self.text)), None)

    @property
    def reason(self) -> str:
        """Why, in the words of the server or of libpq, without their preambles."""
        reasons: list[str] = []
        for line in self.text.splitlines():
            reason = _PREAMBLE.sub("", line).strip()
            if reason and not line.startswith(("\t", "DETAIL", "HINT")) and reason not in reasons:
                reasons.append(reason)
        return "; ".join(reasons) or "no reason given"


_PREAMBLE = re.compile(
    r"^(connection failed: |connection is bad: )?(connection to server .*? failed: )?((FATAL|ERROR|PANIC): +)?"
)


class ConnectFailed(psycopg.OperationalError):
    """No attempt at connecting succeeded."""

    def __init__(self, failures: list[Failure]) -> None:
        super().__init__("; ".join(f"{failure.where}: {failure.reason}" for failure in failures))
        self.failures = failures


@contextmanager
def translated() -> Generator[None]:
    """Within this block psycopg's errors become ours, except those that belong to the statement."""
    try:
        yield
    except psycopg.Error as error:
        translation = translate(error)
        if translation is None:
            raise
        raise translation from error


def translate(error: psycopg.Error) -> Unavailable | Misconfigured | None:
    """Our error for this one, or None when it is the statement's own."""
    if isinstance(error, BadConninfo):
        return Misconfigured(str(error))
    if isinstance(error, ConnectFailed):
        return _cannot_connect(error)
    state = error.sqlstate
    if state is None:
        # Without a state the server has said nothing: libpq or psycopg speak of the connection. (An error result that
        # libpq makes up itself when the server is gone is a plain DatabaseError.)
        away = isinstance(error, psycopg.OperationalError) or type(error) is psycopg.DatabaseError
    else:
        away = state in _AWAY_STATES or state.startswith(_AWAY_CLASSES)
    return Unavailable(f"PostgreSQL: {_first_line(error)}") if away else None


def _cannot_connect(error: ConnectFailed) -> Unavailable | Misconfigured:
    """A person has to act only when every host wants that: one that is merely away may yet be the right one.

    Several addresses of one host name are one host: `::1` may refuse what 127.0.0.1 answers.
    """
    fixes = {failure.host: failure.fix for failure in error.failures}
    for failure in error.failures:
        fixes[failure.host] = fixes[failure.host] or failure.fix
    if not all(fixes.values()):
        return Unavailable(f"PostgreSQL cannot be reached: {error}")
    refusals = [failure for failure in error.failures if failure.fix]
    told = "; ".join(dict.fromkeys(f"{failure.where}: {failure.reason}" for failure in refusals))
    remedy = "; ".join(dict.fromkeys(failure.fix for failure in refusals if failure.fix))
    return Misconfigured(f"PostgreSQL refuses the connection ({told}): {remedy}")


def _first_line(error: psycopg.Error) -> str:
    lines = str(error).strip().splitlines()
    return _PREAMBLE.sub("", lines[0]) if lines else type(error).__name__
