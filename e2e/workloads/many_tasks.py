"""A given number of asyncio tasks that stand still: requests that each wait for two queries, which wait for one answer.

usage: many_tasks.py TASKS
"""

import asyncio
import sys


async def query(answer):
    await answer


async def request(answer):
    await asyncio.gather(
        asyncio.create_task(query(answer)), asyncio.create_task(query(answer))
    )


async def main(count):
    answer = asyncio.get_running_loop().create_future()
    requests = [asyncio.create_task(request(answer)) for _ in range((count - 1) // 3)]
    rest = count - 1 - 3 * len(requests)
    requests += [asyncio.create_task(query(answer)) for _ in range(rest)]
    while len(asyncio.all_tasks()) < count:
        await asyncio.sleep(0)
    print("ready", flush=True)
    await asyncio.gather(*requests)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
