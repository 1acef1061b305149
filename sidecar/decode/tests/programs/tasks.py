"""asyncio in two threads, and what can be awaited in it."""

import asyncio
import os
import threading
import types

import truth


async def leaf(future):
    await future


async def middle(future):
    await leaf(future)


async def generator(future):
    yield 1
    await future
    yield 2


async def consumer(future):
    async for _ in generator(future):
        pass


async def wrapped(future):
    await WithAwait(future)


class WithAwait:
    def __init__(self, future):
        self.future = future

    def __await__(self):
        return leaf(self.future).__await__()


@types.coroutine
def by_generator(future):
    yield from future


async def on_generator(future):
    await by_generator(future)


async def gathering(*awaited):
    await asyncio.gather(*awaited)


async def grouping(future):
    async with asyncio.TaskGroup() as group:
        group.create_task(leaf(future), name="grüßt")
        group.create_task(leaf(future), name="日本語")


async def waits_for(name):
    await next(task for task in asyncio.all_tasks() if task.get_name() == name)


async def other_loop(ready):
    future = asyncio.get_running_loop().create_future()
    tasks = [asyncio.create_task(middle(future), name=f"elsewhere-{n}") for n in range(3)]
    await asyncio.sleep(0)
    ready.set()
    await asyncio.gather(*tasks)


def lowest():
    truth.stand_still()


async def busy():
    await asyncio.sleep(0)
    below()


def below():
    list(map(lambda _: lowest(), [1]))


async def main():
    loop = asyncio.get_running_loop()
    future, single = loop.create_future(), loop.create_future()
    tasks = [
        asyncio.create_task(middle(future)),
        asyncio.create_task(consumer(single), name="consumer"),
        asyncio.create_task(wrapped(future), name="wrapped"),
        asyncio.create_task(on_generator(future), name="on generator"),
        asyncio.create_task(grouping(future), name="grouping"),
        asyncio.create_task(waits_for("second"), name="first"),
        asyncio.create_task(waits_for("first"), name="second"),
        asyncio.create_task(asyncio.sleep(3600), name="x" * 2000),
    ]
    tasks.append(asyncio.create_task(gathering(*tasks[:2]), name="gathering"))
    tasks += [asyncio.create_task(gathering(tasks[2]), name=f"waiter-{n}") for n in range(12)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running = asyncio.create_task(busy(), name="busy")
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(leaf(single), name="created"))
    await running
    for task in tasks:
        task.cancel()


ready = threading.Event()
threading.Thread(
    target=lambda: asyncio.run(other_loop(ready)), name="a thread with a long name", daemon=True
).start()
ready.wait()
(loop,) = (loop for loop in truth.loops() if loop.is_running())
while not truth.waits(loop):
    # The other loop has something left to do.
    os.sched_yield()
asyncio.run(main())
