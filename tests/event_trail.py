"""The audit trail in memory, as PostgreSQL would show it: for tests of what follows it, on the mock clock."""

import random

import trio

from bloomd.errors import Unavailable
from bloomd.runtime import trail
from bloomd.runtime.recent import id_of
from bloomd.runtime.trail import PAGE, Beginning, Entries, Entry


class Trail:
    """In the place of a database. What it answers is from the moment when it was asked; `latency()` is in seconds."""

    def __init__(self, chance=None):
        self.chance = chance or random.Random(0)
        self.next_xact = 100
        self.next_seq = 1
        self.running = set()
        self.committed = []
        self.latency = lambda: 0.0
        self.fails = lambda query: False
        self.away = None

    def begin(self):
        xact, self.next_xact = self.next_xact, self.next_xact + 1
        self.running.add(xact)
        return xact

    def draw(self, xact):
        seq, self.next_seq = self.next_seq, self.next_seq + 1
        return Entry(f"{xact}", 1, "task.x", "task", "t", "x", "d" * self.chance.randint(0, 300), xact=xact, seq=seq)

    def commit(self, xact, entries):
        self.running.discard(xact)
        self.committed.extend(entries)

    def write(self, times=1):
        xact = self.begin()
        self.commit(xact, [self.draw(xact) for _ in range(times)])

    @property
    def horizon(self):
        return min(self.running, default=self.next_xact)

    @property
    def ids(self):
        return [id_of(position) for position in sorted(entry.position for entry in self.committed)]

    async def rows(self, struct, query, *, xact, seq):
        answer = self.beginning() if query == trail.BEGINNING else self.after((xact, seq))
        await trio.sleep(self.latency())
        if self.fails(query):
            raise Unavailable("the database is away")
        return [answer]

    def crash(self, *, lost):
        """Lose transactions that came to nothing: their ids are used again."""
        self.running.clear()
        self.next_xact -= lost

    def beginning(self):
        settled = [entry.position for entry in self.committed if entry.xact < self.horizon]
        return Beginning(horizon=self.horizon, newest=max(settled, default=(0, 0)), kept=True)

    def after(self, position):
        settled = sorted(
            (entry for entry in self.committed if position < entry.position < (self.horizon, 0)),
            key=lambda entry: entry.position,
        )
        held_back = any(entry.xact >= self.horizon for entry in self.committed)
        return Entries(horizon=self.horizon, held_back=held_back, entries=settled[:PAGE])
