"""A payment service whose bank has stopped answering.

Every charge needs a connection from a pool of one. The charge of request 1 holds it and waits for the bank's answer, so
all other requests queue up behind the pool, the event loop has nothing to do, and no log line says why. Two threads are
stuck for reasons of their own: the ledger waits for a lock that the exporter holds while it waits for the bank, too.

usage: stuck_service.py [REQUESTS]
"""

import asyncio
import queue
import socket
import sys
import threading


class Pool:
    """A pool of connections to one server, handed out first come, first served."""

    def __init__(self, port, size):
        self.port = port
        self.free = asyncio.Semaphore(size)
        self.holders = []
        self.waiting = []

    async def acquire(self, who):
        self.waiting.append(who)
        await self.free.acquire()
        self.waiting.remove(who)
        self.holders.append(who)
        return await asyncio.open_connection("127.0.0.1", self.port)

    def release(self, who):
        self.holders.remove(who)
        self.free.release()


class Service:
    """The requests in flight, and what they need."""

    def __init__(self, pool):
        self.pool = pool
        self.requests = {}
        self.receipts = queue.Queue()
        self.ledger = threading.Lock()

    async def charge(self, number):
        reader, writer = await self.pool.acquire(f"request-{number}")
        try:
            writer.write(b"charge %d\n" % number)
            await writer.drain()
            return await reader.readline()
        finally:
            writer.close()
            self.pool.release(f"request-{number}")

    async def audit(self, number):
        return f"audited {number}"

    async def handle(self, number):
        async with asyncio.TaskGroup() as group:
            group.create_task(self.audit(number), name=f"audit-{number}")
            paid = group.create_task(
                self.charge(number), name="charge" if number == 1 else f"charge-{number}"
            )
        self.receipts.put(paid.result())

    async def settle(self):
        """The nightly settlement: waits for every request."""
        return await asyncio.gather(*self.requests.values())

    def send_receipts(self):
        while True:
            print("receipt", self.receipts.get(), flush=True)

    def export(self, bank_port, holds_the_ledger):
        with self.ledger, socket.create_connection(("127.0.0.1", bank_port)) as bank:
            holds_the_ledger.set()
            bank.sendall(b"export\n")
            bank.recv(4096)

    def write_ledger(self):
        with self.ledger:
            print("ledger written", flush=True)


class SilentBank:
    """A server that takes every request and never answers."""

    def __init__(self):
        self.charged = asyncio.Event()

    async def serve(self, reader, writer):
        while line := await reader.readline():
            if line.startswith(b"charge"):
                self.charged.set()


async def tick():
    number = 0
    while True:
        print("tick", number, flush=True)
        number += 1
        await asyncio.sleep(1)


async def main(requests):
    global service
    bank = SilentBank()
    server = await asyncio.start_server(bank.serve, "127.0.0.1", 0)
    bank_port = server.sockets[0].getsockname()[1]
    service = Service(Pool(bank_port, size=1))

    exporting = threading.Event()
    threading.Thread(
        target=service.export, args=(bank_port, exporting), name="exporter", daemon=True
    ).start()
    await asyncio.to_thread(exporting.wait)
    threading.Thread(target=service.write_ledger, name="ledger", daemon=True).start()
    threading.Thread(target=service.send_receipts, name="receipts", daemon=True).start()

    for number in range(1, requests + 1):
        service.requests[number] = asyncio.create_task(
            service.handle(number), name=f"request-{number}"
        )
    settlement = asyncio.create_task(service.settle(), name="settlement")
    await bank.charged.wait()
    print("ready", flush=True)
    await asyncio.gather(settlement, asyncio.create_task(tick(), name="tick"))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 17))
