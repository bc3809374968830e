"""The stored form of a token stream: records that explain themselves.

A shard is one stream of tokens, document after document, cut into records of R tokens (the last may be shorter):

    header   magic, token width, tokens, boundaries, position in the shard, first document, token offset in it
    uint32   boundaries: places in [0, tokens] where a document begins; the end of the shard counts as one
    uint16/32 tokens, then one look-ahead token (0 at the end of the shard)

So the segment, document and offset of every token, and whether its successor belongs to the same document, come from
its record alone.
"""

import bisect
import hashlib
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pretrain.data.places import write_places

HEADER = struct.Struct("<4sIIIqqq")
HEADER_BYTES, _unpack = HEADER.size, HEADER.unpack_from
U2, U4 = np.dtype("<u2"), np.dtype("<u4")
MAGIC = b"PTR1"
OPTIONS = "group_size:1,uncompressed"  # every record is found and read alone
DOCUMENTS_A_RECORD = 1024  # of the document index: 32 kB
DOCUMENT_FIELDS = 4  # number of the source file, row in it, bytes of text, tokens; int64


class Record(NamedTuple):
    tokens: np.ndarray  # with the look-ahead token at the end
    boundaries: np.ndarray
    position: int
    first_document: int
    offset: int


def token_dtype(vocab_size: int) -> np.dtype:
    return U2 if vocab_size <= 1 << 16 else U4


def encode_record(record: Record) -> bytes:
    tokens, boundaries = record.tokens, record.boundaries
    sizes = (tokens.itemsize, len(tokens) - 1, len(boundaries))
    header = HEADER.pack(MAGIC, *sizes, record.position, record.first_document, record.offset)
    return header + boundaries.astype("<u4").tobytes() + tokens.tobytes()


def decode_record(data: bytes) -> Record:
    """A view of `data`; ValueError where it is no record."""
    if len(data) < HEADER_BYTES:
        raise ValueError("not a token record")
    magic, width, count, boundaries, position, document, offset = _unpack(data)
    at = HEADER_BYTES + 4 * boundaries
    if magic != MAGIC or len(data) != at + width * (count + 1) or width not in (2, 4):
        raise ValueError("not a token record")
    places = np.frombuffer(data, U4, boundaries, HEADER_BYTES)
    if (boundaries and places.max() > count) or min(position, document, offset) < 0:
        raise ValueError("a token record whose places lie outside it")
    return Record(np.frombuffer(data, U2 if width == 2 else U4, count + 1, at), places, position, document, offset)


class ShardWriter:
    """Writes a token file and its document index under temporary names; `finish` makes them durable and visible."""

    def __init__(self, folder: Path, name: str, record_tokens: int, dtype: np.dtype):
        self.folder, self.name, self.record_tokens, self.dtype = folder, name, record_tokens, dtype
        self.documents = self.tokens = self.text_bytes = 0
        self._files: dict[str, Any] = {}  # ArrayRecordWriter, imported where it is used
        self._pending: list[np.ndarray] = []  # tokens not yet in a record
        self._pending_tokens = 0
        self._position = 0  # of the first pending token
        self._starts: list[int] = []  # of documents that begin among the pending tokens
        self._begun, self._last_start = 0, 0  # documents that began before the pending tokens, and where the last did
        self._rows: list[tuple[int, int, int, int]] = []

    def add(self, tokens: np.ndarray, file: int, row: int, text_bytes: int) -> None:
        self._rows.append((file, row, text_bytes, len(tokens)))
        if len(self._rows) == DOCUMENTS_A_RECORD:
            self._flush_documents()
        self._starts.append(self.tokens)
        self._pending.append(tokens.astype(self.dtype))
        self._pending_tokens += len(tokens)
        self.documents += 1
        self.tokens += len(tokens)
        self.text_bytes += text_bytes
        if self._pending_tokens > self.record_tokens:
            self._flush()

    def _flush(self, last: bool = False) -> None:
        stream = np.concatenate([*self._pending, np.zeros(1 if last else 0, self.dtype)])
        done, R = 0, self.record_tokens
        while len(stream) - done > R:
            self._emit(stream[done : done + R + 1])
            done += R
        if last and len(stream) - done > 1:
            self._emit(stream[done:])
        self._pending = [stream[done:]]
        self._pending_tokens = len(stream) - done

    def _emit(self, tokens: np.ndarray) -> None:
        begin, end = self._position, self._position + len(tokens) - 1
        inside = self._starts[: bisect.bisect_left(self._starts, end)]
        del self._starts[: len(inside)]
        ends = end == self.tokens or self._starts[:1] == [end]
        boundaries = np.array([*inside, end] if ends else inside, np.int64) - begin
        at_start = inside[:1] == [begin]
        document, offset = (self._begun, 0) if at_start else (self._begun - 1, begin - self._last_start)
        self._write(f"{self.name}.array_record", encode_record(Record(tokens, boundaries, begin, document, offset)))
        self._position = end
        self._begun += len(inside)
        self._last_start = inside[-1] if inside else self._last_start

    def _flush_documents(self) -> None:
        self._write(f"{self.name}.documents.array_record", np.array(self._rows, "<i8").tobytes())
        self._rows = []

    def _write(self, file: str, data: bytes) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        if file not in self._files:
            self._files[file] = ArrayRecordWriter(str(self._temporary(file)), OPTIONS)
        self._files[file].write(data)

    def _temporary(self, file: str) -> Path:
        return self.folder / f"{file}.tmp-{os.getpid()}"

    def finish(self) -> dict[str, dict]:
        """Size and sha256 of each file by its name; no files when there was no document."""
        if self.documents:
            self._flush(last=True)
        if self._rows:
            self._flush_documents()
        for writer in self._files.values():
            writer.close()
        names = list(self._files)
        if self.documents:
            names.append(f"{self.name}.places")
            shard = self._temporary(f"{self.name}.array_record")
            write_places(shard, -(-self.tokens // self.record_tokens), self._temporary(names[-1]))
        files = {}
        for name in names:
            temporary = self._temporary(name)
            files[name] = {"bytes": temporary.stat().st_size, "sha256": sha256(temporary)}
            publish(temporary, self.folder / name)
        return files


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def publish(temporary: Path, path: Path) -> None:
    """Moves a file or folder to its name, so that the name never stands for less than the whole, even after a crash."""
    for part in [*temporary.glob("*"), temporary]:
        _fsync(part)
    temporary.rename(path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
