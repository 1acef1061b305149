"""Tasks that wait for each other: shared, in circles, in long rows and wide fans."""

import asyncio

import truth

KEPT = []


def pending():
    return asyncio.get_running_loop().create_future()


async def on(awaited):
    await awaited


async def on_both(one, other):
    await asyncio.gather(one, other)


async def on_named(name):
    await asyncio.sleep(0)
    await next(task for task in asyncio.all_tasks() if task.get_name() == name)


async def forgotten():
    await asyncio.Event().wait()


def make(awaitable, name):
    KEPT.append(asyncio.create_task(awaitable, name=name))
    return KEPT[-1]


def circle(name, length):
    for n in range(length):
        make(on_named(f"{name} {(n + 1) % length}"), f"{name} {n}")


async def in_both_circles(one, other):
    await asyncio.sleep(0)
    tasks = {task.get_name(): task for task in asyncio.all_tasks()}
    await asyncio.wait([tasks[one], tasks[other]])


async def main():
    future = pending()
    # One future, of which none is a task.
    for n in range(40):
        make(on(future), f"on one future {n}")
    # One task with one waiter, with two, with many.
    for waiters in (1, 2, 500):
        awaited = make(on(pending()), f"awaited by {waiters}")
        for n in range(waiters):
            make(on(awaited), f"one of {waiters} waiters, {n}")
    # A set of which members have gone again.
    shrunk = make(on(pending()), "had more waiters")
    gone = [make(asyncio.wait_for(asyncio.shield(shrunk), None), f"goes {n}") for n in range(100)]
    for n in range(3):
        make(on(shrunk), f"stays {n}")
    # A row.
    last = make(on(pending()), "end of the row")
    for n in range(300):
        last = make(on(last), f"in the row {n}")
    # A diamond, and shared sub-trees.
    bottom = make(on(pending()), "bottom")
    sides = [make(on(bottom), f"side {n}") for n in range(2)]
    top = make(on_both(*sides), "top")
    for n in range(3):
        make(on_both(top, bottom), f"above the top {n}")
    # Circles: of two, of three, of fifty; two that share a task; one with a tail on either end.
    circle("two", 2)
    circle("three", 3)
    circle("fifty", 50)
    make(in_both_circles("left", "right"), "shared")
    make(on_named("shared"), "left")
    make(on_named("shared"), "right")
    circle("tailed", 2)
    make(on_named("tailed 0"), "waits for the circle")
    make(in_both_circles("tailed 0", "bottom"), "waits for the circle and more")
    # A waiter that is a future of another kind.
    KEPT.append(asyncio.ensure_future(asyncio.gather(make(on(pending()), "gathered by nobody"))))
    # asyncio holds its tasks weakly; this one lives by what it waits for.
    KEPT.append(pending())
    make(forgotten(), "alone")
    for _ in range(5):
        await asyncio.sleep(0)
    for task in gone:
        task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert all(task.done() for task in gone)
    # Circles of what is recorded by hand alone: an edge needs no await.
    one, other = make(on(pending()), "recorded one"), make(on(pending()), "recorded other")
    await asyncio.sleep(0)
    asyncio.future_add_to_awaited_by(one, other)
    asyncio.future_add_to_awaited_by(other, one)
    asyncio.future_add_to_awaited_by(other, pending())
    alone = make(on(pending()), "recorded itself")
    await asyncio.sleep(0)
    asyncio.future_add_to_awaited_by(alone, alone)
    truth.stand_still()


asyncio.run(main())
