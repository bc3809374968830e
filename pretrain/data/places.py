"""Where each record of a shard lies and what its bytes add up to, so that one is read and checked by one system call.

A shard is an ArrayRecord file, whose own reader takes twelve microseconds a record of 4 kB; this takes four. The file
is made of chunks, each with a header of 40 bytes (hash, bytes of data, hash of it, kind and number of records, bytes of
the records); one chunk a record, whose bytes are the chunk's last. Every 64 KiB of the file begin with a header of 24
bytes, wherever that falls (google/riegeli, doc/riegeli_records_file_format.md).
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

BLOCK, BLOCK_HEADER = 1 << 16, 24
CHUNK = struct.Struct("<8xQ8xQQ")
PLACE = struct.Struct("<QII")
"""Where in the file, how many bytes, their CRC-32."""
RECORD = ord("r")


def write_places(shard: Path, records: int, to: Path) -> None:
    """The places of the first records of a file with one uncompressed record a chunk."""
    with shard.open("rb") as file, to.open("wb") as out:
        for at, size in _records(file.fileno(), records):
            out.write(PLACE.pack(at, size, zlib.crc32(_joined(file.fileno(), at, size))))


class Records:
    """The records of a shard. ValueError where one is not what was written."""

    def __init__(self, shard: Path, places: Path):
        self._name = places.name
        self._files = shard.open("rb", 0), places.open("rb", 0)  # closed with this object, whoever still reads
        self._shard, self._places = (f.fileno() for f in self._files)

    def __call__(self, number: int) -> bytes:
        at, size, crc = PLACE.unpack(os.pread(self._places, PLACE.size, PLACE.size * number))
        data = _joined(self._shard, at, size)
        if zlib.crc32(data) != crc:
            raise ValueError(f"record {number} is not what {self._name} says")
        return data


def _records(file: int, records: int) -> Iterator[tuple[int, int]]:
    """(place, bytes) of each record."""
    at = 0
    while records:
        header = _joined(file, at, CHUNK.size)
        if len(header) < CHUNK.size:
            raise ValueError(f"{records} records are missing")
        data, kind, size = CHUNK.unpack(header)
        at = _behind(at, CHUNK.size)
        if kind & 0xFF == RECORD:
            if kind >> 8 != 1:
                raise ValueError(f"found {kind >> 8} records in a chunk, expected one")
            yield _behind(at, data - size), size
            records -= 1
        at = _behind(at, data)


def _behind(at: int, size: int) -> int:
    """Where `size` bytes end that begin at `at`, without the headers of blocks."""
    while size:
        at += BLOCK_HEADER if at % BLOCK == 0 else 0
        part = min(size, BLOCK - at % BLOCK)
        at, size = at + part, size - part
    return at


def _joined(file: int, at: int, size: int) -> bytes:
    """`size` bytes from `at` on, without the headers of blocks; fewer where the file ends."""
    if at % BLOCK and at % BLOCK + size <= BLOCK:
        return os.pread(file, size, at)
    parts = []
    while size:
        at += BLOCK_HEADER if at % BLOCK == 0 else 0
        part = os.pread(file, min(size, BLOCK - at % BLOCK), at)
        if not part:
            break
        parts.append(part)
        at, size = at + len(part), size - len(part)
    return b"".join(parts)
