"""Files that somebody else may have written: read within bounds, or refused in one line. Every floor may use it."""

import json
import os
import re
from pathlib import Path
from typing import Any

from pretrain.errors import UserError

LARGEST = 1 << 25
"""Bytes of a JSON file: three times the index of DeepSeek V3. All that is made of them takes less than 2 GB."""
DEEPEST = 64
"""Lists and objects inside one another: what walks over them afterwards may call itself."""
DEEP = f"more than {DEEPEST} lists and objects inside one another"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(text: bytes | str) -> Any:
    """Any JSON value. Raises ValueError, and nothing else: also for a key that comes twice, for UTF-8 or an escape that
    is no text, for numbers of thousands of digits and for what is nested too deeply."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    try:
        out = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(DEEP) from None
    _check_depth(out)
    if _SURROGATE.search(data):
        json.dumps(out, ensure_ascii=False).encode("utf-8")
    return out


def load(path: Any, largest: int = LARGEST) -> Any:
    """The JSON value in a file of at most so many bytes; `path` may be an epath. Raises ValueError or OSError."""
    return loads(read(path, largest))


def read(path: Any, largest: int) -> bytes:
    """A file of at most so many bytes. Raises ValueError for a longer one, and OSError."""
    if not is_regular(path) and path.exists():
        raise OSError("no regular file")
    out = bytearray()
    with path.open("rb") as file:
        while len(out) <= largest and (part := file.read(1 << 20)):  # no room is made for more than there is
            out += part
    if len(out) > largest:
        raise ValueError(f"more than {largest} bytes")
    return bytes(out)


def is_regular(path: Any) -> bool:
    """Whether it is a file that ends; a pipe would be waited for."""
    return path.is_file() if "://" in str(path) else os.path.isfile(path)


def reason(error: BaseException, most: int = 120) -> str:
    """What an error says, on one short line."""
    said = " ".join(str(error).split())[:most]
    return said if said.isprintable() else ascii(said)


def inside(folder: str | os.PathLike, name: str) -> Path:
    """`folder/name`. Raises UserError where a link leads out of the folder; into the blobs of a Hugging Face cache it
    may, whose snapshots are such links."""
    path, home = Path(folder) / name, Path(os.path.realpath(folder))
    found = Path(os.path.realpath(path))
    homes = [home, *(p.parents[1] / "blobs" for p in (home, *home.parents) if p.parent.name == "snapshots")]
    if not any(found.is_relative_to(h) for h in homes):
        raise UserError(f"{path}: found a link out of its folder, expected a file in it; copy it there")
    return path


def is_plain(name: Any) -> bool:
    """Whether it is the name of a file in a folder, and of no other place."""
    fits = isinstance(name, str) and 0 < len(name.encode("utf-8", "replace")) <= 255 and name.isprintable()
    return fits and not {"/", "\\"} & set(name) and name not in (".", "..")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [v for v in level if isinstance(v, list | dict)]:
        level, depth = [x for v in level for x in (v.values() if isinstance(v, dict) else v)], depth + 1
        if depth > DEEPEST:
            raise ValueError(DEEP)


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"{twice!r} stands in it twice")
    return out
