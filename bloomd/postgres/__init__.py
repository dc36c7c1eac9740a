"""PostgreSQL for a trio program: psycopg's connections, natively on trio, and what a daemon needs around them.

psycopg writes every operation as a generator that says what it waits for, and libpq does the protocol. So this is no
driver of its own: it drives those generators with trio (`waiting`), and gives cancellation a meaning at every moment of
an operation (`connection`). Layers, each of which can be used without the ones above it::

    listen      notifications, over a connection of its own          migrate     migrations from SQL files, and back
    pool        a bounded set of connections, lent to tasks          embedded    a server of our own, as a service
    connection  transaction  cursor    psycopg on trio               cluster     where that server's files are
    waiting     conninfo                                             binaries    where its programs are

What holds, whatever is cancelled, killed or frozen:

- A cancelled query is cancelled on the server, too, usually within milliseconds. A connection is then either clean or
  closed. It never answers one query with the result of another, and no one inherits a transaction.
- A result that was on its way when the cancellation came is returned, not lost: what was committed is known.
- A transaction block that ends without an error has committed.
- Nothing waits for a server for ever: connecting, waiting for a place in the pool, cancelling and closing all have a
  limit; a running query has the caller's cancel scope, and the server's statement timeout.
- psycopg's errors stop at one boundary (`errors.translated`, which the pool and the listener use): the server is away
  (`Unavailable`), a person must change something (`Misconfigured`), or the statement's own error, unchanged. No text
  holds a password.
"""

from bloomd.postgres.connection import Connection
from bloomd.postgres.embedded import Embedded
from bloomd.postgres.errors import translated
from bloomd.postgres.listen import listen
from bloomd.postgres.pool import Loan, Pool, PoolStats

__all__ = ["Connection", "Embedded", "Loan", "Pool", "PoolStats", "listen", "translated"]
