"""A database that answers late, for tests of what is read at one moment and taken over at another."""

import trio

from bloomd.runtime.database import Database


class Held(Database):
    """Holds back the answer to whoever asks this: it is from before whatever happens until `go_on`."""

    def __init__(self, database, query):
        super().__init__()
        self._database = database
        self._query = query
        self.reading = trio.Event()
        self.go_on = trio.Event()

    async def rows(self, struct, query, /, **parameters):
        found = await self._database.rows(struct, query, **parameters)
        if query == self._query:
            self.reading.set()
            await self.go_on.wait()
        return found
