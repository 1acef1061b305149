"""Tasks that begin at once: in their first step they stand in no list, and one runs within another."""

import asyncio
import threading

import truth

KEPT = []


async def on(future):
    await future


async def done():
    return 1


async def outer(n):
    await asyncio.sleep(0)
    inner(n)


def inner(n):
    KEPT.append(asyncio.create_task(nested(n), name=f"nested {n}"))


async def nested(n):
    # Nobody has awaited yet: the whole row runs on one stack.
    if n:
        inner(n - 1)
        return
    future = asyncio.get_running_loop().create_future()
    KEPT.append([asyncio.create_task(on(future), name=f"eager {n}") for n in range(3)])
    KEPT.append(asyncio.create_task(done(), name="done at once"))
    KEPT.append(asyncio.Task(on(future), name="not eager", eager_start=False))
    truth.parked(worker)
    truth.stand_still()


async def in_thread():
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    await first()


async def first():
    KEPT.append(asyncio.create_task(parks(), name="in its first step"))


async def parks():
    truth.park()


async def main():
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.create_eager_task_factory(Task))
    KEPT.append(asyncio.create_task(outer(3), name="outer"))
    await KEPT[-1]


class Task(asyncio.Task):
    pass


worker = threading.Thread(target=lambda: asyncio.run(in_thread()), name="eager in a thread", daemon=True)
worker.start()
asyncio.run(main())
