"""The GGUF format of llama.cpp, read lazily and without trust.

A file is the magic, a version, two counts, so many (key, type, value), so many (name, shape, type, offset), and the
numbers, aligned. All is little endian; the library `gguf` knows how its forty types of blocks become numbers again.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.errors import UserError
from pretrain.models.convert.safetensors import Tensor, listed

MAGIC, VERSIONS = b"GGUF", (2, 3)
ALIGNMENT = 32  # bytes, where general.alignment says nothing
MAX_COUNT = 1 << 16
"""Keys or tensors: many times what the largest models have."""
MAX_ITEMS = 1 << 23
"""Of all arrays together: many times the vocabularies and merges of the largest tokenizers."""
MAX_STRING = 1 << 24  # bytes
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class File:
    metadata: dict[str, Any]
    """Numbers, strings, and lists of one of them."""
    tensors: dict[str, Tensor]
    """As f32, in row-major order."""


class _Cursor:
    """Reads on, and never beyond the end."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at, self.items = path, data, 0, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise self.damaged(f"found {len(self.data)} bytes, its header needs more")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))
        return value

    def count(self, what: str, most: int) -> int:
        value = self.number("Q")
        if value > most:
            raise self.damaged(f"found {value} {what}, expected at most {most}")
        return value

    def string(self) -> str:
        try:
            return self.take(self.count("bytes in a string", MAX_STRING)).decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged("found a string that is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            number = self.number(SCALARS[kind])
            # A float was written from a short decimal: the shortest that gives the same four bytes.
            return float(str(np.float32(number))) if kind == 6 else number
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise self.damaged(f"found a value of type {kind}, expected one of 0 to 12")
        inner, length = self.number("I"), self.count("items in an array", MAX_ITEMS)
        self.items += length
        if self.items > MAX_ITEMS:
            raise self.damaged(f"found {self.items} items in arrays, expected at most {MAX_ITEMS}")
        if inner == STRING:
            return [self.string() for _ in range(length)]
        if inner not in SCALARS:
            raise self.damaged(f"found an array of type {inner}, expected numbers or strings")
        width = struct.calcsize("<" + SCALARS[inner])
        return list(struct.unpack(f"<{length}{SCALARS[inner]}", self.take(length * width)))

    def damaged(self, found: str) -> UserError:
        return UserError(f"{self.path}: {found}; expected a GGUF file, copy it again")


def read(path: Path) -> File:
    """Its metadata and tensors; the numbers stay on disk until read. Raises UserError."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError(f"{path}: GGUF needs the library gguf, found none; do pip install 'pretrain[gguf]'") from None
    if path.stat().st_size < 24:
        raise UserError(f"{path}: found {path.stat().st_size} bytes; expected a GGUF file, copy it again")
    with path.open("rb") as file:
        cursor = _Cursor(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if cursor.take(4) != MAGIC:
        raise cursor.damaged("found another beginning than GGUF")
    version = cursor.number("I")
    if version not in VERSIONS:
        raise cursor.damaged(f"found version {version}, expected one of {VERSIONS} in little endian")
    tensors, keys = cursor.count("tensors", MAX_COUNT), cursor.count("keys", MAX_COUNT)
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        name, kind = cursor.string(), cursor.number("I")
        if name in metadata:
            raise cursor.damaged(f"found the key {listed([name])} twice")
        metadata[name] = cursor.value(kind)
    return File(metadata, _tensors(cursor, tensors, metadata))


def _tensors(cursor: _Cursor, count: int, metadata: dict[str, Any]) -> dict[str, Tensor]:
    entries = {}
    for _ in range(count):
        name, dims = cursor.string(), cursor.number("I")
        if not 1 <= dims <= 4:
            raise cursor.damaged(f"tensor {listed([name])}: found {dims} dimensions, expected 1 to 4")
        shape = tuple(reversed([cursor.number("Q") for _ in range(dims)]))
        if name in entries:
            raise cursor.damaged(f"found the tensor {listed([name])} twice")
        entries[name] = shape, cursor.number("I"), cursor.number("Q")
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        raise cursor.damaged(f"general.alignment is {repr(alignment)[:40]}, expected a power of two")
    start = -(-cursor.at // alignment) * alignment
    return {name: _tensor(cursor, name, *entry, start=start) for name, entry in entries.items()}


def _tensor(cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int, offset: int, *, start: int) -> Tensor:
    import gguf

    try:
        block = gguf.GGMLQuantizationType(kind)
        rows, width = gguf.GGML_QUANT_SIZES[block]
        gguf.dequantize(np.zeros(width, np.uint8), block)
    except (ValueError, KeyError, NotImplementedError):
        raise UserError(
            f"{cursor.path}: tensor {listed([name])} has type {kind}, gguf {_version()} does not turn it into numbers; "
            "do quantise the model otherwise"
        ) from None
    size, last = math.prod(shape), shape[-1]
    begin, bytes_ = start + offset, size // rows * width
    if last % rows or not size or begin + bytes_ > len(cursor.data):
        raise cursor.damaged(
            f"tensor {listed([name])}: found shape {list(shape)} of {block.name} at byte {begin} of {len(cursor.data)}"
        )

    def load() -> np.ndarray:
        raw = np.frombuffer(cursor.data, np.uint8, bytes_, begin).reshape(*shape[:-1], last // rows * width)
        return gguf.dequantize(raw, block).astype(np.float32, copy=False).reshape(shape)

    return Tensor(shape, np.dtype(np.float32), load)


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")
