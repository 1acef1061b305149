"""A given number of asyncio tasks: requests that each wait for two queries, which wait for one answer.

usage: many_tasks.py TASKS [busy|churn]

They stand still and the process sleeps. With `busy` a thread beside them computes without end and so holds the GIL. It
looks at its clock all the time and keeps the gaps between two looks; a line on standard input is answered with the gaps
since the last one, as a line of JSON, `[[begin, end], ...]` in nanoseconds of CLOCK_MONOTONIC. With `churn` the tasks take
turns instead, and every tenth turn of a task another one takes its place: a moment later there may be one more, never less.
"""

import asyncio
import gc
import json
import sys
import threading
import time

# What a look at the clock takes is far below, what a stopped thread misses far above.
GAP_NANOSECONDS = 20_000


async def query(answer):
    await answer


async def request(answer):
    await asyncio.gather(
        asyncio.create_task(query(answer)), asyncio.create_task(query(answer))
    )


async def turns(tasks):
    for _ in range(10):
        await asyncio.sleep(0)
    tasks.add(asyncio.create_task(turns(tasks)))
    tasks.discard(asyncio.current_task())


def watch_the_clock(gaps):
    clock = time.monotonic_ns
    last = clock()
    while True:
        now = clock()
        if now - last > GAP_NANOSECONDS:
            gaps.append((last, now))
        last = now


def tell(gaps):
    if sys.stdin.readline():
        seen = gaps.copy()
        gaps.clear()
        print(json.dumps(seen), flush=True)


async def main(count, mode):
    answer = asyncio.get_running_loop().create_future()
    if mode == "churn":
        tasks = set()
        while len(tasks) < count - 1:
            tasks.add(asyncio.create_task(turns(tasks)))
        standing = [answer]
    else:
        standing = [
            asyncio.create_task(request(answer)) for _ in range((count - 1) // 3)
        ]
        rest = count - 1 - 3 * len(standing)
        standing += [asyncio.create_task(query(answer)) for _ in range(rest)]
        standing = standing or [answer]
    while len(asyncio.all_tasks()) < count:
        await asyncio.sleep(0)
    if mode == "busy":
        # The collector would look at every task again and again, and those gaps are nobody else's doing.
        gc.disable()
        gaps = []
        asyncio.get_running_loop().add_reader(sys.stdin, tell, gaps)
        threading.Thread(target=watch_the_clock, args=(gaps,), daemon=True).start()
    print("ready", flush=True)
    await asyncio.gather(*standing)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), (sys.argv[2:] or ["idle"])[0]))
