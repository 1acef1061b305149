# Where a script's output goes. The classes refer to nothing of one script: what they need is given to their objects.
# In front of it stand Base, io's base of buffered streams, and source, this text.
class Sink(Base):
    # The binary stream beneath the script's stdout or stderr: writes the beginning as it comes, keeps the end.
    def __init__(self, put, kind, original, head, tail, monotonic):
        self.put, self.kind, self.original, self.monotonic = put, kind, original, monotonic
        self.room, self.most, self.total = head, tail, 0
        self.pending, self.tail = bytearray(), bytearray()
        self.flushes, self.flushed = 0, 0.0

    def writable(self):
        return True

    def write(self, data):
        data = bytes(data)
        if self.put is None:
            # Somebody kept it beyond the script's end.
            beneath = getattr(self.original, "buffer", None)
            return beneath.write(data) if beneath is not None else len(data)
        self.total += len(data)
        if self.room:
            first, data_left = data[:self.room], data[self.room:]
            self.room -= len(first)
            self.pending += first
            # The first lines at once, so that a script that never ends has shown them; later ones in bunches.
            if len(self.pending) >= 1 << 16 or b"\n" in first and (
                self.flushes < 256 or self.monotonic() - self.flushed > 0.01
            ):
                self.emit()
        else:
            data_left = data
        if data_left:
            self.tail += data_left
            if len(self.tail) > 2 * self.most:
                del self.tail[:-self.most]
        return len(data)

    def emit(self):
        if self.pending:
            data, self.pending = bytes(self.pending), bytearray()
            self.flushes += 1
            self.flushed = self.monotonic()
            self.put(self.kind, data)

    def end(self):
        if self.put is None:
            return
        self.emit()
        if self.tail:
            self.put(self.kind.upper(), self.total.to_bytes(8, "little") + bytes(self.tail[-self.most:]))
        self.put = self.monotonic = None


def chosen(proxy):
    original, variable, index = object.__getattribute__(proxy, "_sidewinder")
    sinks = variable.get(None) if variable is not None else None
    return sinks[index] if sinks else original


def over(proxy):
    # The script has ended. Gives the stream beneath, which is no proxy of a script that has ended before.
    original, _, index = object.__getattribute__(proxy, "_sidewinder")
    object.__setattr__(proxy, "_sidewinder", (original, None, index))
    while hasattr(type(original), "sidewinder_over"):
        beneath, variable, _ = object.__getattribute__(original, "_sidewinder")
        if variable is not None:
            break
        original = beneath
    return original


class Proxy:
    # Stands in for sys.stdout or sys.stderr while a script runs. Only what runs in the script's context goes to its
    # sink; everybody else goes through, also for ever after, should somebody have kept it.
    def __init__(self, original, variable, index):
        object.__setattr__(self, "_sidewinder", (original, variable, index))

    # How proxies know each other, and end.
    sidewinder_over = staticmethod(over)

    @property
    def __class__(self):
        return type(chosen(self))

    def write(self, text):
        stream = chosen(self)
        return stream.write(text) if stream is not None else len(text)

    def flush(self):
        stream = chosen(self)
        return stream.flush() if stream is not None else None

    def __getattr__(self, name):
        return getattr(chosen(self), name)

    def __setattr__(self, name, value):
        setattr(chosen(self), name, value)

    def __delattr__(self, name):
        delattr(chosen(self), name)

    def __iter__(self):
        return iter(chosen(self))

    def __next__(self):
        return next(chosen(self))

    def __enter__(self):
        return chosen(self).__enter__()

    def __exit__(self, *args):
        return chosen(self).__exit__(*args)

    def __repr__(self):
        return repr(chosen(self))


Sink.proxy, Sink.source, Sink.contextvars = Proxy, source, None
