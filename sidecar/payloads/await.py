# A part of the wrapper: a script that awaits becomes a task on the loop that runs in this thread.
def later(found):
    global loop
    if found is None:
        raise RuntimeError(
            f"the script awaits, and no asyncio event loop runs in this thread ({thread:#x}): ask the thread of a loop "
            "(`tasks` shows which threads have one), or await inside asyncio.run()"
        )
    loop = found
    context = contextvars.copy_context()
    context.run(variable.set, sinks)
    # The loop may be anywhere, also in the midst of its own bookkeeping: this is what may be called from everywhere.
    loop.call_soon_threadsafe(arrive, context=context)
    put(b"A")


def arrive():
    # Not loop.create_task: an application's task factory may run the first step at once, or do what it likes.
    kind = asyncio_c.Task if asyncio_c is not None else sys.modules["asyncio.tasks"].Task
    kind(_sidewinder(), loop=loop, name="sidewinder")


async def _sidewinder():
    # The name again: while it is on a thread's stack a script runs there.
    global failure
    try:
        if begin():
            install()
            running = eval(codes[0], namespace)
            if running is not None:
                await running
            if len(codes) > 1:
                value = eval(codes[1], namespace)
                if codes[1].co_flags & COROUTINE:
                    value = await value
                part("value")
                report_value(value)
    except BaseException as error:
        # Not even SystemExit goes further: it would end the application's loop.
        failure = error
    for _ in range(4):
        try:
            conclude()
            end = last()
            # As at the end of bootstrap.py.
            [*end[0], *end[1], *end[2]]
            return
        except BaseException as error:
            consumed(error)
