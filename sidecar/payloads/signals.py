# A part of the wrapper: whether an exception is a signal's. A handler that raises raises in whatever runs, and that was
# the script; the application never saw its signal.
def raised_by(error):
    found, todo, seen = [], [error], set()
    handlers = None
    while todo and len(seen) < 100:
        error = todo.pop()
        if not isinstance(error, BaseException) or id(error) in seen:
            continue
        seen.add(id(error))
        todo += error.__cause__, error.__context__
        if isinstance(error, BaseExceptionGroup):
            todo += error.exceptions[:15]
        if handlers is None:
            handlers = [(number, _signal.getsignal(number)) for number in sorted(_signal.valid_signals())]
            default = handlers_default_int(handlers)
            handlers = [(number, code) for number, handler in handlers for code in handler_codes(handler)]
            # The one that ends a script stands for no signal of anybody's.
            handlers = [(number, code) for number, code in handlers if code.co_filename != OURS]
        step = error.__traceback__
        while step is not None:
            frame = step.tb_frame
            number = handled_in(frame, handlers)
            if number is not None:
                found.append(number)
            if step.tb_next is None and default and type(error) is KeyboardInterrupt and not raised_at(frame, step.tb_lasti):
                found.append(2)
            step = step.tb_next
    return found


def handlers_default_int(handlers):
    # Written in C: it raises without a frame of its own.
    return any(number == 2 and handler is _signal.default_int_handler for number, handler in handlers)


def handler_codes(handler):
    # A function, a method, a partial, an object that can be called: whatever is called in the end.
    for _ in range(5):
        if isinstance(handler, int) or handler is None:
            break
        code = getattr(handler, "__code__", None)
        if type(code) is type(handler_codes.__code__):
            return (code,)
        inner = getattr(handler, "__func__", None) or getattr(handler, "func", None)
        handler = inner if inner is not None else getattr(type(handler), "__call__", None)
    return ()


def handled_in(frame, handlers):
    # The number of the signal that a handler's frame is about. A call by the script itself has no frame to pass on.
    code = frame.f_code
    numbers = [number for number, handler in handlers if handler is code]
    if not numbers:
        return None
    values = frame.f_locals
    arguments = [values.get(name) for name in code.co_varnames[:min(code.co_argcount, 4)]]
    if code.co_flags & 4:
        # *args
        rest = values.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount])
        arguments += rest if type(rest) is tuple else ()
    for number, interrupted in zip(arguments, arguments[1:]):
        if isinstance(number, int) and int(number) in numbers and type(interrupted) is type(frame):
            return int(number)
    return None


def raised_at(frame, at):
    # Whether the instruction raises by itself: a raise statement, or a yield to which somebody threw something. Their
    # numbers differ from version to version, so they are looked up in code that has them. At the latter a signal may
    # come as well; one that was none is not to be sent.
    code = frame.f_code.co_code
    at = code[at] if 0 <= at < len(code) else None
    thrown = raising()
    next(thrown)
    # CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR
    return at == instruction(next, raising(False)) or (
        at == instruction(thrown.throw, KeyboardInterrupt) and frame.f_code.co_flags & 0x2A0
    )


def raising(later=True):
    if later:
        yield
    raise KeyboardInterrupt


def instruction(call, argument):
    try:
        call(argument)
    except KeyboardInterrupt as error:
        step = error.__traceback__
        # It holds this frame, whose variable it is.
        error.__traceback__ = None
        while step.tb_next is not None:
            step = step.tb_next
        return step.tb_frame.f_code.co_code[step.tb_lasti]
