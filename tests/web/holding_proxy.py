"""A proxy that lets an event stream begin, and keeps its events to itself, as some do that buffer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio


@asynccontextmanager
async def holding_back(port: int) -> AsyncIterator[str]:
    """Passes everything on to this port, and of an event stream only its head; gives its own address."""

    async def connection(client: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as server, trio.open_nursery() as nursery:
            nursery.start_soon(pass_on, client, server)
            await pass_on(server, client)
            nursery.cancel_scope.cancel()

    async def pass_on(source: trio.SocketStream, target: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for chunk in source:
                head, end, _ = chunk.partition(b"\r\n\r\n")
                is_stream = b"content-type: text/event-stream" in head.lower()
                await target.send_all(head + end if is_stream else chunk)
                if is_stream:
                    await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, connection, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
