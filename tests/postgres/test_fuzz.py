"""Thousands of operations on few connections, cancelled at random moments.

What must hold, for every operation, whatever happened to its neighbours:

- every row that comes back answers the operation that asked for it;
- what returned has been committed, and what raised `Cancelled` has not: nothing in between;
- no connection is lent in a transaction, none is lost, and no session is left on the server but the pool's idle ones.
"""

import random
from collections import Counter
from typing import Any

import psycopg
import trio
from polling import eventually, one

from bloomd.postgres import Connection, Pool

CONNECTIONS = 4
TASKS = 16
OPERATIONS = 4000
SEED = 20260101


class Fuzz:
    def __init__(self, pool: Pool, seed: int) -> None:
        self.pool = pool
        self.random = random.Random(seed)
        self.next = 0
        self.returned: set[int] = set()
        self.cancelled: set[int] = set()
        self.seen: Counter[str] = Counter()

    async def work(self) -> None:
        while self.next < OPERATIONS:
            self.next += 1
            number = self.next
            operation = self.random.choice(
                [self.select, self.insert, self.transact, self.nest, self.copy, self.many, self.large, self.listen]
            )
            with trio.CancelScope() as scope:
                scope.deadline = trio.current_time() + self.a_moment()
                await operation(number)
                self.returned.add(number)
            if scope.cancelled_caught:
                self.cancelled.add(number)
            self.seen[f"{operation.__name__}{'*' if scope.cancelled_caught else ''}"] += 1

    def a_moment(self) -> float:
        return self.random.choice([0.0, 0.0005, 0.002, 0.01, 10.0]) * self.random.random() * 2

    async def lent(self, connection: Connection[Any]) -> None:
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert connection.autocommit

    async def select(self, number: int) -> None:
        async with self.pool.connection() as connection:
            await self.lent(connection)
            pause = self.random.choice([0, 0, 0.002])
            for step in range(3):
                answer = await one(connection, "SELECT %s::int FROM pg_sleep(%s)", number * 10 + step, pause)
                assert answer == number * 10 + step

    async def insert(self, number: int) -> None:
        async with self.pool.connection() as connection:
            await self.lent(connection)
            pause = self.random.choice([0, 0.002])
            answer = await one(connection, "INSERT INTO done SELECT %s FROM pg_sleep(%s) RETURNING n", number, pause)
            assert answer == number

    async def transact(self, number: int) -> None:
        async with self.pool.transaction() as connection:
            assert await one(connection, "INSERT INTO done VALUES (%s) RETURNING n", -number) == -number
            if self.random.random() < 0.3:
                await trio.sleep(0.001)
            assert await one(connection, "UPDATE done SET n = -n WHERE n = %s RETURNING n", -number) == number

    async def nest(self, number: int) -> None:
        async with self.pool.transaction() as connection:
            await connection.execute("INSERT INTO done VALUES (%s)", [number])
            async with connection.transaction(force_rollback=True):
                await connection.execute("INSERT INTO done VALUES (%s)", [-number])
                assert await one(connection, "SELECT count(*) FROM done WHERE n = %s", -number) == 1

    async def copy(self, number: int) -> None:
        async with self.pool.transaction() as connection:
            async with connection.cursor().copy("COPY done FROM STDIN") as copy:
                await copy.write_row([number])
                await trio.lowlevel.checkpoint()
            async with connection.cursor().copy(
                f"COPY (SELECT {number}::int FROM generate_series(1, 50)) TO STDOUT"
            ) as out:
                async for row in out.rows():
                    assert row == (str(number),)

    async def many(self, number: int) -> None:
        async with self.pool.transaction() as connection:
            cursor = connection.cursor()
            await cursor.executemany("SELECT %s::int", [(number + n,) for n in range(5)], returning=True)
            answers: list[Any] = []
            while True:
                answers.append(await cursor.fetchone())
                if not cursor.nextset():
                    break
            assert answers == [(number + n,) for n in range(5)]
            await connection.execute("INSERT INTO done VALUES (%s)", [number])

    async def large(self, number: int) -> None:
        async with self.pool.connection() as connection:
            await self.lent(connection)
            text = f"{number}:" + "x" * 300_000
            assert await one(connection, "SELECT %s", text) == text

    async def listen(self, number: int) -> None:
        async with self.pool.connection() as connection:
            await self.lent(connection)
            async for notification in connection.notifies(timeout=0.001):
                raise AssertionError(f"{notification} was for somebody else")
            assert await one(connection, "SELECT %s::int", number) == number


WRITERS = ("insert", "transact", "nest", "copy", "many")


async def test_random_cancellation(database: str) -> None:
    async with (
        Pool(database, size=CONNECTIONS, acquire_timeout=60) as pool,
        await Connection.connect(database) as observer,
    ):
        await observer.execute("CREATE TABLE done (n int)")
        fuzz = Fuzz(pool, SEED)
        with trio.fail_after(50):
            async with trio.open_nursery() as nursery:
                for _ in range(TASKS):
                    nursery.start_soon(fuzz.work)

        for operation in ("select", "insert", "transact", "nest", "copy", "many", "large", "listen"):
            assert fuzz.seen[operation] > 20, "it has been tried, and has worked"
            assert fuzz.seen[f"{operation}*"] > 20, "it has been tried, and was cancelled"

        rows = [n for (n,) in await (await observer.execute("SELECT n FROM done")).fetchall()]
        assert len(rows) == len(set(rows)), "nothing was done twice"
        assert not [n for n in rows if n < 0], "nothing was half done"
        written = set(rows)
        assert written <= fuzz.returned, "what was cancelled was not committed"
        assert len(written) == sum(fuzz.seen[name] for name in WRITERS), "what returned was committed"

        assert pool.stats.busy == 0
        assert pool.stats.waiting == 0
        assert 1 <= pool.stats.idle <= CONNECTIONS
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

        async def only_the_idle_ones_are_left() -> bool:
            return await one(observer, f"SELECT count(*) {others}") == pool.stats.idle

        await eventually(only_the_idle_ones_are_left)
        assert await one(observer, f"SELECT array_agg(DISTINCT state) {others}") == ["idle"]
