"""What is done to a valid small file so that a reader's every belief about it is wrong at some time: for fuzz.py."""

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

DEEP = json.loads("[" * 90 + "]" * 90)
JUNK: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 255, 2**16, 2**20, 2**31 - 1, 2**31, 10**9, 2**32, 2**47, 2**53),
    *(2**63 - 1, 2**63, 2**64 - 1, 10**18, 10**30, 10**400, -(2**31), -(2**63)),
    *(0.5, -0.5, 1.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan"), -0.0, 1e18),
    *("", "x", "0", "none", "../../etc/passwd", "/etc/passwd", "..", ".", "a/b", "a\\b", "a\0b", "a\nb", "\x1b[31m"),
    *("x" * 300, "é", "\ud800", "\U0001f600", "(a+)+$", "[", "%s", "{}", "os.system", "nan", "1e999"),
    *([], [0], [1], [""], [[]], [None], [2**62, 2**62], [0, 2**62], [-1], [0.5], [1] * 70, [1] * 2000, ["x"] * 50),
    *({}, {"x": 1}, {"kind_of": "posix.system"}, {"type": 7}, {"type": "Sequence"}, {"__class__": "os"}, DEEP),
)
NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0xFF,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**60,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
"""Where sizes, counts and offsets begin to lie."""
WORDS = (b"\0", b"\xff", b"\n", b'"', b"[", b"{", b"../", b"\xed\xa0\x80", b"1e999", b"9" * 5000, b"\\ud800", b"PK\3\4")

Seal = Callable[[bytes], bytes]
"""Makes checksums and lengths right again, so that a change gets behind them."""


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every node."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from places(part, (*path, key))


def changed_json(rng: random.Random, value: Any, known: list[tuple]) -> bytes:
    """The value with one to three of its nodes changed, as JSON. `known`: its places."""
    value, twice = copy.deepcopy(value), None
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(known)
        if not path:
            if rng.random() < 0.05:
                value = copy.deepcopy(rng.choice(JUNK))
            continue
        try:
            holder = value
            for key in path[:-1]:
                holder = holder[key]
            twice = _change(rng, holder, path[-1], value, known) or twice
        except (KeyError, IndexError, TypeError, OverflowError):
            continue  # an earlier change took it away
    text = json.dumps(value, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")
    if twice is not None and text.startswith(b"{"):
        text = b"{" + json.dumps(twice).encode() + b": 1, " + text[1:]
    return text


def _change(rng: random.Random, holder: Any, key: Any, whole: Any, known: list[tuple]) -> str | None:
    """Changes `holder[key]`; returns a key that shall come twice."""
    how = rng.random()
    if how < 0.55:
        holder[key] = copy.deepcopy(rng.choice(JUNK))
    elif how < 0.65:
        del holder[key]
    elif how < 0.72 and isinstance(holder, dict):
        holder[str(rng.choice(JUNK))[:400]] = holder.pop(key)
    elif how < 0.8:
        other = whole
        for step in rng.choice(known):
            other = other[step]
        holder[key] = copy.deepcopy(other)
    elif how < 0.86:
        holder[key] = [copy.deepcopy(holder[key]) for _ in range(rng.choice((1, 2, 33)))]
    elif how < 0.92 and isinstance(holder, dict):
        holder["unknown"] = copy.deepcopy(rng.choice(JUNK))
    elif how < 0.97 and type(holder[key]) in (int, float):
        holder[key] += rng.choice((-1, 1, 0.5, 2**31))
    elif isinstance(key, str):
        return key
    return None


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to four changes of bytes, most of them near the beginning, where sizes stand."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not out:
            break
        at = rng.randrange(min(len(out), rng.choice((32, 256, len(out)))))
        how = rng.random()
        if how < 0.25:
            out[at] ^= 1 << rng.randrange(8)
        elif how < 0.4:
            out[at] = rng.randrange(256)
        elif how < 0.6:
            code, size = rng.choice((("<I", 32), ("<Q", 64), (">I", 32), ("<H", 16)))
            word = struct.pack(code, rng.choice(NUMBERS) & (2**size - 1))
            out[at : at + len(word)] = word
        elif how < 0.7:
            del out[at:]
        elif how < 0.78:
            del out[at : at + rng.randrange(1, 40)]
        elif how < 0.88:
            other = rng.randrange(len(out))
            out[at:at] = out[other : other + rng.randrange(1, 64)]
        elif how < 0.97:
            out[at:at] = rng.choice(WORDS)
        else:
            out[:] = b""
    return bytes(out)


class Subject:
    """A valid file, and ways to damage it."""

    def __init__(self, data: bytes, seal: Seal = lambda text: text, unseal: Seal = lambda data: data):
        """`unseal`: the JSON in it, which `seal` makes a file again."""
        self.data, self.seal, self.unseal = data, seal, unseal
        self.lines: list[tuple[Any, list[tuple]]] = []
        try:
            values = [json.loads(line) for line in [unseal(data)]]
        except ValueError:
            try:
                values = [json.loads(line) for line in unseal(data).splitlines()]
            except ValueError:
                values = []
        self.lines = [(value, list(places(value))) for value in values]

    def damaged(self, rng: random.Random) -> bytes:
        how = rng.random()
        if not self.lines or how < 0.15:
            return changed_bytes(rng, self.data)
        which = rng.randrange(len(self.lines))
        text = changed_json(rng, *self.lines[which])
        if how < 0.25:
            text = changed_bytes(rng, text)
        if len(self.lines) > 1:
            parts = [json.dumps(value).encode() for value, _ in self.lines]
            text = b"\n".join([*parts[:which], text, *parts[which + 1 :]]) + b"\n"
        return self.seal(text)
