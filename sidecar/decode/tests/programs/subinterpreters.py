"""Two interpreters beside the main one: one that runs tasks of its own, and an idle one."""

import concurrent.interpreters
import threading

import truth

CODE = """
import asyncio
import os

async def sub_leaf(future):
    await future

async def sub_main():
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    tasks = [asyncio.create_task(sub_leaf(future), name=f"sub-{n}") for n in range(3)]
    await asyncio.sleep(0)
    print("ready", flush=True), os.read(os.pipe()[0], 1)

asyncio.run(sub_main())
"""


def inside(interpreter):
    interpreter.exec(CODE)


interpreter, idle = concurrent.interpreters.create(), concurrent.interpreters.create()
threading.Thread(target=inside, args=(interpreter,), name="inside", daemon=True).start()
truth.park()
