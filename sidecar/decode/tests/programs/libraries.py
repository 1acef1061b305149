"""Event loops and stacks that libraries in C make: uvloop's loop, greenlets."""

import asyncio
import threading

import greenlet
import truth
import uvloop

KEPT = []


async def leaf(future):
    await future


async def middle(future):
    async with asyncio.TaskGroup() as group:
        group.create_task(leaf(future), name="in a group")
        await asyncio.shield(leaf(future))


async def settled():
    """As many rounds of the loop as it takes its tasks to come to what they wait for."""
    this = asyncio.current_task()
    while any(task._fut_waiter is None for task in asyncio.all_tasks() if task is not this):
        await asyncio.sleep(0)


async def on_uvloop():
    loop = asyncio.get_running_loop()
    truth.LOOPS[loop] = threading.get_native_id()
    future = loop.create_future()
    for n in range(3):
        KEPT.append(asyncio.create_task(middle(future), name=f"uvloop {n}"))
    KEPT.append(asyncio.create_task(asyncio.sleep(3600), name="sleeps"))
    KEPT.append(asyncio.create_task(asyncio.wait_for(leaf(future), 3600), name="with a limit"))
    await settled()
    loop.call_soon(truth.park)
    await loop.create_future()


def switched():
    """A greenlet that another one has switched to; the others are no thread's stack."""

    def inner(n):
        return inner(n - 1) if n else truth.park()

    def between():
        KEPT.append(greenlet.greenlet(inner))
        sorted([1], key=lambda _: KEPT[-1].switch(3))

    KEPT.append(greenlet.greenlet(between))
    KEPT[-1].switch()


def suspended():
    """A thread whose other greenlets stand still while the main one goes on."""

    def gives_back():
        greenlet.getcurrent().parent.switch()

    KEPT.append(greenlet.greenlet(gives_back))
    KEPT[-1].switch()
    truth.park()


threads = [
    threading.Thread(target=lambda: uvloop.run(on_uvloop()), name="uvloop", daemon=True),
    threading.Thread(target=switched, name="switched", daemon=True),
    threading.Thread(target=suspended, name="suspended", daemon=True),
]
for thread in threads:
    thread.start()
truth.parked(*threads)


async def main():
    loop = asyncio.get_running_loop()
    truth.LOOPS[loop] = threading.get_native_id()
    KEPT.append(asyncio.create_task(leaf(loop.create_future()), name="of the main thread"))
    await settled()
    truth.stand_still()


uvloop.run(main())
