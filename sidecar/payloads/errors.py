# A part of the wrapper: an exception as Python would print it, without the module traceback.
def explained(error):
    kind = qualified(type(error))
    text = error_message(error)
    try:
        shown = "".join(trace(error, {}, set(), 0))
    except Exception as failure:
        # What an exception shows of itself may be wrong in any way.
        shown = f"{kind}: {text}\n[its traceback could not be made: {qualified(type(failure))}]\n"
    return (b"t", kind), (b"m", text), (b"b", shown)


def error_message(error):
    try:
        return str(error)
    except BaseException as failure:
        return f"<str() raised {qualified(type(failure))}>"


def source_line(filename, number, files):
    text = files.get(filename)
    if text is None:
        text = ()
        if filename == NAME:
            text = script.decode("utf-8", "replace").splitlines()
        elif not filename.startswith("<"):
            try:
                with _io.open(filename, "rb", buffering=0) as file:
                    text = file.read(4 << 20).decode("utf-8", "replace").splitlines()
            except (OSError, ValueError):
                pass
        files[filename] = text
    return text[number - 1] if number and 0 < number <= len(text) else ""


def trace(error, files, seen, depth):
    out = []
    if error is None or id(error) in seen or depth > 20:
        return out
    seen.add(id(error))
    cause, context = error.__cause__, error.__context__
    if cause is not None:
        out += trace(cause, files, seen, depth + 1)
        out.append("\nThe above exception was the direct cause of the following exception:\n\n")
    elif context is not None and not error.__suppress_context__:
        before = trace(context, files, seen, depth + 1)
        if before:
            out += before
            out.append("\nDuring handling of the above exception, another exception occurred:\n\n")
    out += trace_entries(error.__traceback__, files)
    text = error_message(error)
    if isinstance(error, SyntaxError) and isinstance(error.lineno, int) and error.filename:
        out += syntax_entries(error, files)
        text = str(error.msg)
    kind = qualified(type(error))
    out.append(f"{kind}: {text}\n" if text else f"{kind}\n")
    for note in getattr(error, "__notes__", None) or ():
        out.append(f"{note}\n")
    if isinstance(error, BaseExceptionGroup):
        for index, inner in enumerate(error.exceptions[:15], 1):
            out.append(f"  +---------------- {index} ----------------\n")
            inside = "".join(trace(inner, files, seen, depth + 1))
            out += [f"  | {line}\n" for line in inside.splitlines()]
    return out


def trace_entries(step, files):
    entries = []
    while step is not None:
        code = step.tb_frame.f_code
        if code.co_filename != OURS:
            entries.append((code, step.tb_lineno))
        step = step.tb_next
    if len(entries) > 200:
        entries[100:-100] = [(None, len(entries) - 200)]
    out = ["Traceback (most recent call last):\n"] if entries else []
    for code, number in entries:
        if code is None:
            out.append(f"  [{number} frames left out]\n")
            continue
        out.append(f'  File "{code.co_filename}", line {number}, in {code.co_qualname}\n')
        line = source_line(code.co_filename, number, files).strip()
        if line:
            out.append(f"    {line[:400]}\n")
    return out


def syntax_entries(error, files):
    out = [f'  File "{error.filename}", line {error.lineno}\n']
    line = error.text if isinstance(error.text, str) else source_line(error.filename, error.lineno, files)
    line = (line or "").rstrip("\n")
    bare = line.lstrip()
    if bare:
        out.append(f"    {bare[:400]}\n")
        if isinstance(error.offset, int) and error.offset > 0:
            column = max(error.offset - 1 - (len(line) - len(bare)), 0)
            if column <= len(bare) < 400:
                end = error.end_offset if error.end_lineno == error.lineno else None
                width = max((end or 0) - error.offset, 1)
                out.append(f"    {' ' * column}{'^' * min(width, 400)}\n")
    return out
