"""A healthy server with nothing to do: its event loop sleeps in the kernel until somebody connects.

A thread of its own ticks, so that nothing but a connection wakes the event loop.
"""

import asyncio
import threading
import time


async def echo(reader, writer):
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


def tick():
    number = 0
    while True:
        print("tick", number, flush=True)
        number += 1
        time.sleep(1)


async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    print("ready", flush=True)
    threading.Thread(target=tick, name="tick", daemon=True).start()
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
