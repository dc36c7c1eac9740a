"""A clock that a test holds in its hand, in the database of a running daemon: `bloom_now_ms()` gives what it is set to.

The daemon leads for ever on such a database: its time as the leader could not be renewed across the clock's jumps. Its
sweeper goes its rounds in real time; it can be held up, and it can be waited for.
"""

from typing import Any

import psycopg
from servers import eventually

# `bloom_leads` is a condition of all that the sweeper does.
HOLD = """
CREATE TABLE held_clock (now_ms bigint NOT NULL, sweeping boolean NOT NULL);
INSERT INTO held_clock VALUES (bloom_now_ms(), true);

CREATE OR REPLACE FUNCTION bloom_now_ms() RETURNS bigint LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    RETURN (SELECT now_ms FROM held_clock);
END
$$;

CREATE OR REPLACE FUNCTION bloom_leads(of_epoch bigint) RETURNS boolean LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM leaders, held_clock WHERE epoch = of_epoch AND expires_at > now_ms AND sweeping);
END
$$;

CREATE FUNCTION lead_for_ever() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.expires_at := 253402300799000;
    RETURN NEW;
END
$$;
CREATE TRIGGER lead_for_ever BEFORE INSERT OR UPDATE ON leaders FOR EACH ROW EXECUTE FUNCTION lead_for_ever();
UPDATE leaders SET expires_at = 0;
"""

MOVE = """
UPDATE held_clock SET now_ms = now_ms + %s RETURNING now_ms
"""

SET_SWEEPING = """
UPDATE held_clock SET sweeping = %s
"""

# What the sweeper has to do at this time.
DUE = """
SELECT EXISTS (SELECT FROM leases WHERE status = 'active' AND least(expires_at, deadline_at) <= bloom_now_ms())
    OR EXISTS (SELECT FROM llm_tasks
                WHERE status = 'queued' AND NOT ready AND coalesce(greatest(not_before, retry_at), 0) <= bloom_now_ms())
    OR EXISTS (SELECT FROM workers
                WHERE status = 'online' AND coalesce(alive_at, registered_at) < bloom_now_ms() - %s)
"""


class HeldClock:
    """The clock of one database. `sweeping` says whether the sweeper goes its rounds."""

    def __init__(self, connection: psycopg.Connection[Any], *, offline_ms: int) -> None:
        """On an autocommitting connection. `offline_ms`: the silence after which the sweeper takes workers offline."""
        self._connection = connection
        self._connection.execute(HOLD)
        self._offline_ms = offline_ms
        self.sweeping = True

    def move(self, milliseconds: int) -> int:
        """Move the clock on; the new time in epoch milliseconds."""
        [(now,)] = self._connection.execute(MOVE, [milliseconds])
        return now

    def hold_the_sweeper_up(self) -> None:
        """It does nothing from now on, however much is due."""
        self._connection.execute(SET_SWEEPING, [False])
        self.sweeping = False

    def let_the_sweeper_go_on(self) -> None:
        self._connection.execute(SET_SWEEPING, [True])
        self.sweeping = True

    def wait_for_the_sweeper(self) -> None:
        """Return when nothing is due any more."""
        eventually(lambda: not self._connection.execute(DUE, [self._offline_ms]).fetchall()[0][0])
