"""A prepared split as one long stream of tokens, read anywhere by arithmetic.

The stream is all shards in order. Memory: a few numbers for each shard and some open files.
"""

import bisect
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.manifest import read_manifest, sources
from pretrain.data.places import Records
from pretrain.data.records import DOCUMENT_FIELDS, DOCUMENTS_A_RECORD, Record, decode_record, sha256
from pretrain.errors import UserError

OPEN_FILES = 64  # kept open by a process


@dataclass(frozen=True)
class Piece:
    """A run of one document's tokens in a window, and where the document came from."""

    start: int  # in the window
    length: int
    shard: str
    document: int  # in the shard
    offset: int  # tokens of the document (with its bos) before this run
    file: str
    row: int


class Split:
    """Opens without reading any token; raises UserError where a shard is missing or has another size."""

    def __init__(self, folder: str | os.PathLike, name: str, part: str | None = None):
        """`part`: only this one of a corpus of several."""
        self.folder, self.name, self.part = Path(folder), name, part
        manifest = read_manifest(self.folder)
        self.fingerprint, self.vocab_size = manifest.tokenizer, manifest.vocab_size
        self.record_tokens = manifest.record_tokens
        self.shards = [s for s in manifest.shards[name] if s.tokens and part in (None, s.part)]
        self.tokens, self.documents, self.text_bytes = (
            sum(getattr(s, what) for s in self.shards) for what in ("tokens", "documents", "text_bytes")
        )
        self._ends = np.cumsum([0] + [s.tokens for s in self.shards]).tolist()  # entry i: where shard i begins
        self._files = [f"{s.name}.array_record" for s in self.shards]
        self._readers: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._last: tuple[str, Any] = ("", None)  # file and reader that were used last
        problems = [p for shard in self.shards for p in self._size_problems(shard)]
        if problems:
            raise UserError(*problems)

    def __getstate__(self):
        return {**self.__dict__, "_readers": OrderedDict(), "_lock": None, "_last": ("", None)}

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def bytes_per_token(self) -> float:
        """Text bytes of the whole split over its tokens (bos and eos counted): turns nats a token into bits a byte."""
        return self.text_bytes / self.tokens

    @property
    def parts(self) -> list[str]:
        """Names of the parts of the corpus in the order of the stream; of one that is not divided the empty one."""
        return list(dict.fromkeys(shard.part for shard in self.shards))

    def fill(self, position: int, tokens: np.ndarray, starts: np.ndarray) -> int:
        """Copies the window at `position`, returns how many of its T tokens exist.

        `tokens` [T+1] receives the window and its look-ahead token, `starts` [T+1] (bool, zeros) marks document starts;
        the end of a shard counts as one. Past the end of the stream both are left as they are.
        """
        done, T = 0, len(tokens) - 1
        while done < T and position + done < self.tokens:
            record, at = self._record(position + done)
            n = min(len(record.tokens) - 1 - at, T - done)
            tokens[done : done + n + 1] = record.tokens[at : at + n + 1]
            places = record.boundaries
            if n < len(record.tokens) - 1:
                places = places[slice(*places.searchsorted((at, at + n + 1)))]
            if places.size:
                starts[places if done == at else places.astype(np.int64) + (done - at)] = True
            done += n
        return done

    def records(self) -> Iterator[tuple[int, Record]]:
        """Every record in order, each with the position in the stream at which it begins."""
        for begin, shard in zip(self._ends, self.shards):
            for position in range(begin, begin + shard.tokens, self.record_tokens):
                yield position, self._record(position)[0]

    def pieces(self, position: int, length: int) -> list[Piece]:
        """The documents behind a window, in order, read from the records' own headers."""
        out, end = [], min(position + length, self.tokens)
        at = position
        while at < end:
            shard = bisect.bisect_right(self._ends, at) - 1
            record, inside = self._record(at)
            before = int(np.searchsorted(record.boundaries, inside, "right"))
            opens_document = record.boundaries.size and record.boundaries[0] == 0  # then it is `first_document` itself
            document = record.first_document + before - (1 if opens_document else 0)
            offset = inside - int(record.boundaries[before - 1]) if before else record.offset + inside
            file, row, _, tokens = self.document(shard, document)
            n = min(tokens - offset, end - at)
            if n <= 0:
                name = f"{self.shards[shard].name}.documents.array_record"
                raise self._damaged(name, f"document {document} of {tokens} tokens, of which {offset} were read")
            out.append(Piece(at - position, n, self.shards[shard].name, document, offset, file, row))
            at += n
        return out

    def document(self, shard: int, number: int) -> tuple[str, int, int, int]:
        """Source file, row in it, bytes of text and tokens of a document."""
        name = self.shards[shard].name
        table = self._documents(name, number // DOCUMENTS_A_RECORD)
        if number < 0 or number % DOCUMENTS_A_RECORD >= len(table):
            raise self._damaged(f"{name}.documents.array_record", f"no document {number}")
        file, row, text_bytes, tokens = (int(x) for x in table[number % DOCUMENTS_A_RECORD])
        names = sources(self.folder, name)
        if not 0 <= file < len(names):
            raise self._damaged(f"{name}.documents.array_record", f"source file {file} of {len(names)}")
        return names[file], row, text_bytes, tokens

    def document_lengths(self) -> np.ndarray:
        """int64, tokens of every document in the order of the stream."""
        out = []
        for shard in self.shards:
            for record in range(-(-shard.documents // DOCUMENTS_A_RECORD)):
                out.append(self._documents(shard.name, record)[:, -1])
        return np.concatenate(out) if out else np.zeros(0, np.int64)

    @cached_property
    def _windows(self) -> np.ndarray:
        """Entry i: the first window of shard i."""
        return np.cumsum([0] + [-(-shard.documents // DOCUMENTS_A_RECORD) for shard in self.shards])

    @property
    def windows(self) -> int:
        """Groups of at most 1024 neighbouring documents of a shard."""
        return int(self._windows[-1])

    def window_lengths(self, window: int) -> np.ndarray:
        """int64, tokens of each document of a window."""
        shard = int(np.searchsorted(self._windows, window, "right")) - 1
        return self._documents(self.shards[shard].name, window - int(self._windows[shard]))[:, -1]

    def verify(self) -> None:
        """Reads every file; raises UserError naming each that does not have the manifest's sha256."""
        problems = []
        for shard in self.shards:
            for name, stated in shard.files.items():
                if sha256(self.folder / name) != stated["sha256"]:
                    problems.append(f"found other bytes in {self.folder / name}, expected the manifest's; {_REPAIR}")
        if problems:
            raise UserError(*problems)

    def _size_problems(self, shard):
        for name, stated in shard.files.items():
            path = self.folder / name
            if not path.is_file():
                yield f"found no {path}, expected {stated['bytes']} bytes; {_REPAIR}"
            elif (size := path.stat().st_size) != stated["bytes"]:
                yield f"found {size} bytes in {path}, expected {stated['bytes']}; {_REPAIR}"

    def _record(self, position: int) -> tuple[Record, int]:
        """The record that holds a token, and the token's place in it."""
        shard = bisect.bisect_right(self._ends, position) - 1
        number, inside = divmod(position - self._ends[shard], self.record_tokens)
        name = self._files[shard]
        try:
            record = decode_record(self._read(name, number))
        except ValueError as error:
            raise self._damaged(name, str(error)) from None
        if inside >= len(record.tokens) - 1:
            raise self._damaged(name, f"a record of {len(record.tokens) - 1} tokens")
        if record.position != number * self.record_tokens:
            raise UserError(f"found another record at {number} in {self.folder / name}, expected its own; {_REPAIR}")
        return record, inside

    def _documents(self, shard: str, record: int) -> np.ndarray:
        """int64 [documents, DOCUMENT_FIELDS], of one record of the index."""
        data = self._read(f"{shard}.documents.array_record", record)
        if len(data) % (8 * DOCUMENT_FIELDS):
            raise self._damaged(f"{shard}.documents.array_record", f"a record of {len(data)} bytes")
        return np.frombuffer(data, "<i8").reshape(-1, DOCUMENT_FIELDS)

    def _damaged(self, file: str, found: str) -> UserError:
        return UserError(f"found damage in {self.folder / file} ({found}), expected a record; {_REPAIR}")

    def _read(self, file: str, record: int) -> bytes:
        try:
            return self._reader(file)(record)
        except (RuntimeError, ValueError, IndexError, OverflowError, OSError, struct.error) as e:
            reason = " ".join(str(e).split())[:200]
            raise self._damaged(file, reason) from None

    def _reader(self, file: str):
        last, reader = self._last
        if last == file:
            return reader
        with self._lock:
            reader = self._readers.pop(file, None)
            if reader is None:
                reader = _opened(self.folder / file)
            self._readers[file] = reader
            while len(self._readers) > OPEN_FILES:
                self._readers.popitem(last=False)
            self._last = file, reader
            return reader


def _opened(path: Path) -> Callable[[int], bytes]:
    """What reads a record of a file by its number."""
    places = path.with_suffix(".places")
    if places.exists():
        return Records(path, places)
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path), "readahead_buffer_size:0")
    return lambda number: reader.read([number])[0]


_REPAIR = "restore it or delete this folder and prepare anew"
