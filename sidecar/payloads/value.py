# A part of the wrapper: the value of a script's last expression, as text and as JSON without the module json.
ESCAPES = {i: f"\\u{i:04x}" for i in range(32)}
ESCAPES |= {34: '\\"', 92: "\\\\", 10: "\\n", 13: "\\r", 9: "\\t", 127: "\\u007f"}


def report_value(value):
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{qualified(type(value))} object whose repr() raised {qualified(type(error))}>"
    put_text(b"v", text)
    try:
        put(b"j", json(value).encode("utf-8"))
    except Exception:
        # No JSON for it: another type, a cycle, a number with too many digits.
        pass


def json(value):
    pieces = []
    json_into(pieces, [HEAD], value, 0)
    return "".join(pieces)


def json_piece(pieces, budget, piece):
    budget[0] -= len(piece)
    if budget[0] < 0:
        raise ValueError
    pieces.append(piece)


def json_string(pieces, budget, text):
    text = str.translate(text, ESCAPES)
    if not str.isascii(text) and any("\ud800" <= c <= "\udfff" for c in text):
        text = "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text)
    json_piece(pieces, budget, f'"{text}"')


def json_into(pieces, budget, value, depth):
    kind = type(value)
    if kind is str:
        json_string(pieces, budget, value)
    elif value is None:
        json_piece(pieces, budget, "null")
    elif kind is bool:
        json_piece(pieces, budget, "true" if value else "false")
    elif kind is int:
        json_piece(pieces, budget, int.__repr__(value))
    elif kind is float:
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError
        json_piece(pieces, budget, float.__repr__(value))
    elif depth > 50:
        raise ValueError
    elif kind is list or kind is tuple:
        before = "["
        for item in value:
            json_piece(pieces, budget, before)
            json_into(pieces, budget, item, depth + 1)
            before = ", "
        json_piece(pieces, budget, "]" if value else "[]")
    elif kind is dict:
        before = "{"
        for key, item in value.items():
            if type(key) is not str:
                raise ValueError
            json_piece(pieces, budget, before)
            json_string(pieces, budget, key)
            json_piece(pieces, budget, ": ")
            json_into(pieces, budget, item, depth + 1)
            before = ", "
        json_piece(pieces, budget, "}" if value else "{}")
    else:
        raise ValueError
