"""Tasks that are written in Python, and those of a library's own class, among asyncio's; says what each waits for."""

import asyncio
import json
import sys


class Derived(asyncio.tasks._PyTask):
    pass


class Own:
    """A library's task, derived from nothing of asyncio's."""

    def __init__(self, coroutine, name):
        self._coro, self._name, self._loop = coroutine, name, asyncio.get_running_loop()
        self._callbacks = []
        self._fut_waiter = coroutine.send(None)
        asyncio._register_task(self)

    def done(self):
        return False

    def get_loop(self):
        return self._loop


async def leaf(future):
    await future


async def middle(future):
    await leaf(future)


def says_while_running(truth):
    print(json.dumps(truth), flush=True)
    sys.stdin.readline()


async def busy(truth):
    await asyncio.sleep(0.1)
    says_while_running(truth)


async def main():
    loop = asyncio.get_running_loop()
    lock = asyncio.Lock()
    await lock.acquire()
    future = asyncio.futures._PyFuture(loop=loop)
    python = asyncio.tasks._PyTask(middle(loop.create_future()), name="python")
    derived = Derived(middle(python), name="derived")
    own_future = loop.create_future()
    tasks = [
        python,
        derived,
        asyncio.tasks._PyTask(lock.acquire(), name="python lock"),
        asyncio.create_task(leaf(future), name="on a future in Python"),
        asyncio.create_task(leaf(python), name="on a task in Python"),
        asyncio.create_task(asyncio.wait([python, derived]), name="some in Python"),
        Own(leaf(own_future), "own"),
    ]

    def on(kind, thing=None, detail=None):
        return {"kind": kind, "id": thing and f"{id(thing):#x}", "detail": [detail] if detail else []}

    truth = {
        "python": on("Future"),
        "derived": on("Task", python, "python"),
        "python lock": on("Lock", lock, "locked, 1 waiting"),
        "on a future in Python": on("Future", future),
        "on a task in Python": on("Task", python, "python"),
        "some in Python": on("Wait", None, "2 of 2 pending"),
        "own": on("Future", own_future),
        "busy": None,
    }
    running = asyncio.tasks._PyTask(busy(truth), name="busy")
    await asyncio.wait([running])
    del tasks


asyncio.run(main())
