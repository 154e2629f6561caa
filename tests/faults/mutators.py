"""Damages files: any bytes, and JSON by its structure, where a random byte would seldom get past
the parser. Everything is drawn from the `Random` that is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 0.5, -0.0, 1e308, 5e-324, "", " ",
    "\0", "../../x", "/etc/passwd", "\ud800", "</s>", "1", "NaN", "x" * 5000, [], {}, [[]], [-1],
    [2**40, 2**40], {"": None}, list(range(300)),
)  # fmt: skip
TOKENS = (
    b"", b"{", b"}", b"[", b"]", b'"', b"\\", b"\n", b"\0", b"\xff", b"\xed\xa0\x80", b"NaN", b"-1",
    b"1e999", b"9" * 400, b"null", b"[" * 3000, b"\xef\xbb\xbf", b"\r\n", b",", b":", b"=", b"#",
)  # fmt: skip
Mutate = Callable[[bytes, Random], bytes]


def any_bytes(data: bytes, draw: Random) -> bytes:
    """A few bytes changed, cut out, said twice, or put in."""
    at, size = draw.randrange(len(data) + 1), draw.choice((1, 2, 8, 64, len(data)))
    before, piece, after = data[:at], data[at : at + size], data[at + size :]
    flipped = bytes(byte ^ 1 << draw.randrange(8) for byte in piece[:4])
    return draw.choice(
        [
            lambda: before + flipped + piece[4:] + after,
            lambda: before + after,
            lambda: before + piece + piece + after,
            lambda: before,
            lambda: before + draw.choice(TOKENS) + piece + after,
            lambda: before + draw.choice(TOKENS) + after,
            lambda: before + draw.randbytes(min(8, len(piece))) + piece[8:] + after,
        ]
    )()


def json_value(data: bytes, draw: Random) -> bytes:
    """One value of a JSON text made odd, taken out, moved or said twice; or its bytes changed."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return any_bytes(data, draw)
    places = list(_places(tree))
    if not places:
        return json.dumps(draw.choice(ODD)).encode()
    container, key = draw.choice(places)
    way = draw.randrange(5)
    if way == 0:
        del container[key]
    elif way == 1:
        other, its = draw.choice(places)
        container[key] = other[its] if its in _keys(other) else None
        if container[key] is container or draw.random() < 0.3:
            container[key] = None
    elif way == 2 and isinstance(container, dict):
        container[draw.choice(("", "x", "__metadata__", key + "x"))] = container[key]
    else:
        container[key] = draw.choice(ODD)
    try:
        return json.dumps(tree).encode(errors="surrogatepass")
    except (ValueError, RecursionError):  # a value was moved into itself
        return any_bytes(data, draw)


def json_line(data: bytes, draw: Random) -> bytes:
    """One line of JSONL damaged, left out, said twice, or any bytes."""
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    way = draw.randrange(6)
    if way == 0:
        return any_bytes(data, draw)
    if way == 1:
        lines.insert(at, lines[at])
    elif way == 2:
        del lines[at]
    else:
        lines[at] = json_value(lines[at], draw) if lines[at] else b" "
    return b"\n".join(lines)


def safetensors(data: bytes, draw: Random) -> bytes:
    """The header damaged as JSON, its length then right or wrong; or any bytes."""
    length = int.from_bytes(data[:8], "little")
    if draw.random() < 0.2 or 8 + length > len(data):
        return any_bytes(data, draw)
    header = json_value(data[8 : 8 + length].rstrip(), draw)
    said = draw.choice((len(header),) * 6 + (0, max(0, len(header) - 1), 2**40, 2**64 - 1))
    return said.to_bytes(8, "little") + header + data[8 + length :]


def _places(tree: Any) -> Any:
    """(container, key) of every value in a JSON tree."""
    if isinstance(tree, (dict, list)):
        for key in _keys(tree):
            yield tree, key
            yield from _places(tree[key])


def _keys(container: Any) -> list[Any]:
    return list(container) if isinstance(container, dict) else list(range(len(container)))
