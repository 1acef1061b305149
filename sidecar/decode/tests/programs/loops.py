"""Several loops in several threads: idle, running, stopped, of threads that have ended, one within another."""

import asyncio
import selectors
import socket
import threading

import truth

KEPT = []


async def leaf(future):
    await future


async def middle(future):
    async with asyncio.timeout(3600):
        await leaf(future)


async def idle(number):
    """A loop that waits in epoll, its tasks for a future, for each other and for a timer."""
    future = asyncio.get_running_loop().create_future()
    tasks = [asyncio.create_task(middle(future), name=f"idle {number}, {n}") for n in range(3)]
    tasks.append(asyncio.create_task(asyncio.sleep(3600), name=f"idle {number}, sleeps"))
    await asyncio.gather(*tasks)


async def held_up(number):
    """A loop in the middle of a step, with tasks that are ready and new ones."""
    future = asyncio.get_running_loop().create_future()
    KEPT.append([asyncio.create_task(middle(future), name=f"held up {number}, {n}") for n in range(2)])
    await asyncio.sleep(0)
    KEPT.append(asyncio.create_task(middle(future), name=f"held up {number}, new"))
    future.set_result(None)
    plain(3)


def plain(n):
    return sorted([1], key=lambda _: plain(n - 1) if n else truth.park())


async def in_callback():
    """A loop that runs a callback, which is no task."""
    loop = asyncio.get_running_loop()
    KEPT.append(asyncio.create_task(middle(loop.create_future()), name="beside the callback"))
    await asyncio.sleep(0)
    loop.call_soon(lambda: plain(1))
    await asyncio.sleep(3600)


def ended():
    """The thread goes, and its tasks stay."""
    loop = asyncio.new_event_loop()

    async def begin():
        future = loop.create_future()
        KEPT.append([asyncio.create_task(middle(future), name=f"left over {n}") for n in range(3)])
        await asyncio.sleep(0)
        KEPT.append(asyncio.create_task(middle(future), name="left over, created"))

    KEPT.append(loop)
    loop.run_until_complete(begin())


def stopped():
    """The thread stays, and its loop does not run."""
    loop = asyncio.new_event_loop()

    async def begin():
        made_here(asyncio.create_task(middle(loop.create_future()), name="of a loop that was stopped"))
        await asyncio.sleep(0)

    KEPT.append(loop)
    loop.run_until_complete(begin())
    truth.park()


def never_run():
    loop = asyncio.new_event_loop()
    KEPT.append(loop)
    made_here(loop.create_task(middle(loop.create_future()), name="of a loop that never ran"))
    truth.park()


def made_here(task):
    KEPT.append(task)
    truth.MADE_BY[task] = threading.get_native_id()


def handed_over():
    """Makes loops and their tasks for other threads to run: one that is held up in such a task, and one that waits."""
    for coroutine in (held_up("handed over"), idle("handed over")):
        loop = asyncio.new_event_loop()
        made_here(loop.create_task(coroutine, name=f"runs elsewhere {len(HANDED_OVER)}"))
        made_here(loop.create_task(middle(loop.create_future()), name=f"waits elsewhere {len(HANDED_OVER)}"))
        HANDED_OVER.append(loop)


HANDED_OVER = []


def polling():
    """A loop of its own making: another selector, and a class derived from asyncio's."""

    class Loop(asyncio.SelectorEventLoop):
        pass

    with asyncio.Runner(loop_factory=lambda: Loop(selectors.PollSelector())) as runner:
        runner.run(held_up("polling"))


def start(function, *arguments, name):
    thread = threading.Thread(target=function, args=arguments, name=name, daemon=True)
    thread.start()
    return thread


async def main():
    for function in (ended, handed_over):
        start(function, name=function.__name__).join()
    for task in truth.MADE_BY:
        truth.MADE_BY[task] = None
    # One loop more, of this thread's making.
    loop = asyncio.new_event_loop()
    made_here(loop.create_task(held_up("made by main"), name="made by main"))
    HANDED_OVER.append(loop)
    parked = [start(HANDED_OVER[n].run_forever, name=f"runs {n}") for n in (0, 2)]
    waiting = [start(HANDED_OVER[1].run_forever, name="runs 1")]
    waiting += [start(asyncio.run, idle(n), name=f"idle {n}") for n in range(4)]
    parked += [start(asyncio.run, held_up(n), name=f"held up {n}") for n in range(4)]
    parked.append(start(asyncio.run, in_callback(), name="in a callback"))
    parked += [start(function, name=function.__name__) for function in (stopped, never_run, polling)]
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    KEPT.append(theirs)
    KEPT.append(asyncio.create_task(asyncio.get_running_loop().sock_recv(ours, 1), name="on a socket"))
    await asyncio.sleep(0)
    truth.parked(*parked)
    idents = {thread.ident for thread in waiting}
    while True:
        loops = [loop for loop in truth.loops() if loop.is_running() and loop._thread_id in idents]
        if len(loops) == len(waiting) and all(truth.waits(loop) for loop in loops):
            break
    truth.stand_still()


asyncio.run(main())
