"""What ends TLS in front of a server that speaks plainly, as a proxy does. The Valkey of the tests has no TLS of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # either side may hang up
    finally:
        writer.close()


@contextlib.contextmanager
def tls_front(upstream_port: int, context: ssl.SSLContext) -> Iterator[int]:
    """Give a port of the loopback address that takes TLS and passes on what comes to `upstream_port`."""

    writers: list[asyncio.StreamWriter] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", upstream_port)
        writers.extend((writer, to_writer))
        await asyncio.gather(_pump(reader, to_writer), _pump(to_reader, writer))

    async def serve() -> None:
        server = await asyncio.start_server(take, "127.0.0.1", 0, ssl=context)
        ports.append(server.sockets[0].getsockname()[1])
        started.set()
        await stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()  # a polite TLS goodbye would outlast the loop
        await asyncio.sleep(0.1)  # the closed connections leave the loop

    ports: list[int] = []
    started = threading.Event()
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(10)
    yield ports[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()
