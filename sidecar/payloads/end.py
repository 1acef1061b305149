# A part of the wrapper: what becomes of a script that has ended. conclude calls these one after the other.
def explain():
    if failure is None:
        return
    consumed(failure)
    records = []
    try:
        part("errors")
        # What an exception says of itself is the script's code, and ends as such.
        in_context(lambda: records.extend(explained(failure)))
    except (MemoryError, RecursionError):
        records = (b"t", type(failure).__name__), (b"m", "no memory was left to say more")
    for kind, text in records:
        put_text(kind, text)


def take_names():
    # A function of the script that stays, in a module or a class, would keep the frame and all its callers.
    for name, value in given.items():
        if namespace.get(name) is value or type(namespace.get(name)) is type(sys._getframe()):
            del namespace[name]
    given.clear()


def leave():
    in_context(forget)


def forget():
    # What the script leaves to nobody goes now, whatever code that runs.
    global namespace, codes, failure
    codes = failure = None
    # Functions and their globals are a circle, which nobody might collect. Where it has no more references than one that
    # nobody else can know, nobody else knows it.
    names, namespace, known = namespace, None, {}
    exec("def function(): pass", known)
    held, most = references(names), references(known)
    known.clear()
    if held[0] <= most[0] and held[1] <= most[1]:
        names.clear()


def references(names):
    # Of the function that has the most, and of the names without those by these functions.
    kind = type(references)
    functions = [one for one in names.values() if type(one) is kind and one.__globals__ is names]
    return max([sys.getrefcount(one) for one in functions], default=0), sys.getrefcount(names) - len(functions)


def let_go():
    global over
    over = True
    if release is not None:
        release()


def restore():
    for name, proxy in proxies.items():
        original = type(proxy).sidewinder_over(proxy)
        if getattr(sys, name, None) is not proxy:
            # The application has put another one there, or a script that still runs has.
            continue
        if name in absent:
            delattr(sys, name)
        else:
            setattr(sys, name, original)


def flush():
    for text, raw in zip(sinks, raws):
        try:
            text.flush()
        except (ValueError, OSError):
            # The script has closed or detached it.
            pass
        raw.end()
    # Closed for whoever still holds the context: what comes now goes to the application's own stream.
    sinks.clear()


def wake():
    # A loop that sleeps does not see what the script scheduled.
    running = running_loop()
    if running is not None:
        running.call_soon_threadsafe(int)


def report():
    put(b"d", (time.monotonic_ns() - began).to_bytes(8, "little"))
    new = [name for name in list(sys.modules) if name not in modules and isinstance(name, str)]
    if new:
        put_text(b"i", "\n".join(sorted(new)[:4096]))


def unregister():
    _imp.__dict__.pop("_sidewinder " + result, None)


def ending():
    # Until nothing of the script's runs any more, it can be stopped.
    steps = [explain, take_names, leave, let_go, restore, flush, wake, report] if begin() else [forget]
    return steps + [unregister]
