"""The documents of a corpus that nobody prepared, dealt to the rows of a batch, tokenized when a row needs them.

Row b of every batch is a lane: it gets documents b, b + B, b + 2 B, ... of the run, which follow one another in it and
are cut every L tokens. So a row depends on the documents of its own lane alone, whoever reads them, and to go on in the
middle a lane needs only its `Cursor`.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pretrain.data.config import CorpusConfig, Single
from pretrain.data.permute import permute
from pretrain.data.sources import Document, read_file
from pretrain.data.tokenizer import Tokenizer, load_tokenizer
from pretrain.data.windows import Piece
from pretrain.data.write import split_of
from pretrain.errors import UserError

BLOCK_DOCUMENTS, BLOCK_CHARACTERS = 1024, 1 << 24
"""Neighbouring documents that are shuffled among themselves: so many, or of so much text."""


class Place(NamedTuple):
    """Where a block of documents begins."""

    epoch: int = 0
    file: int = 0
    """In the order of the epoch."""
    row: int = 0
    number: int = 0
    """Documents of the run before it."""


class Cursor(NamedTuple):
    """Where the next window of a lane begins."""

    place: Place
    """Of the block of its document."""
    document: int
    """Number in the run."""
    offset: int
    """Tokens of it that were read."""


@dataclass(frozen=True)
class Stream:
    """What is read, and how its text becomes tokens."""

    folder: Path
    """Of the tokenizer."""
    files: tuple[tuple[Single, str], ...]
    corpus: CorpusConfig
    digest: str
    """Of the source files and of the tokenizer."""
    bytes_per_token: float
    """Of the first documents."""
    vocab_size: int

    def documents(self, place: Place, order: np.ndarray) -> Iterator[tuple[int, Document]]:
        """(file of the epoch, document) of the train split from a place on, to the end of its epoch."""
        for at in range(place.file, len(order)):
            source, file = self.files[order[at]]
            for document in read_file(source, file, Counter(), place.row if at == place.file else 0):
                if split_of(document.identity, self.corpus.validation_fraction) == "train":
                    yield at, document

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Document]) -> list[np.ndarray]:
        bos = [tokenizer.bos] if self.corpus.add_bos else []
        eos = [tokenizer.eos] if self.corpus.add_eos else []
        encoded = [np.array(bos + ids + eos, np.int32) for ids in tokenizer.encode_batch([d.text for d in documents])]
        for document, tokens in zip(documents, encoded):
            if tokens.size and (most := int(tokens.max())) >= self.vocab_size:
                message = f"{document.file} row {document.row}: found token {most}"
                raise UserError(f"{message}, expected ids below {self.vocab_size}; repair the tokenizer")
        return encoded


@dataclass
class Block:
    place: Place
    documents: list[Document]


def blocks(stream: Stream, place: Place, seed: int, shuffle: bool) -> Iterator[Block]:
    """Without end, the blocks from the one that begins at `place`, each in the order in which it is dealt."""
    while True:
        begun, held, size, count = place, [], 0, len(stream.files)
        files = np.arange(count)
        order = permute(files, count, seed=f"{seed}:files", epoch=place.epoch) if shuffle else files
        for at, document in stream.documents(place, order):
            if len(held) == BLOCK_DOCUMENTS or size >= BLOCK_CHARACTERS:
                yield _shuffled(Block(place, held), seed, shuffle)
                place = Place(place.epoch, at, document.row, place.number + len(held))
                held, size = [], 0
            held.append(document)
            size += len(document.text)
        if held:
            yield _shuffled(Block(place, held), seed, shuffle)
        elif place == begun and not place.file and not place.row:
            raise UserError(f"found no text for training in {count} source files, expected some; name other files")
        place = Place(place.epoch + 1, 0, 0, place.number + len(held))


def _shuffled(block: Block, seed: int, shuffle: bool) -> Block:
    n = len(block.documents)
    if not shuffle:
        return block
    order = permute(np.arange(n), n, seed=f"{seed}:block", epoch=block.place.number)
    return Block(block.place, [block.documents[i] for i in order.tolist()])


@dataclass
class _Held:
    """A tokenized document, or what is left of it."""

    place: Place
    number: int
    file: str
    row: int
    tokens: np.ndarray
    offset: int


@dataclass
class _Lane:
    step: int
    """Of the window that is next."""
    cursor: Cursor | None
    waiting: deque[tuple[Place, int, Document]] = field(default_factory=deque)
    held: deque[_Held] = field(default_factory=deque)
    tokens: int = 0

    def add(self, place: Place, number: int, document: Document, tokens: np.ndarray) -> None:
        offset = self.cursor.offset if self.cursor and self.cursor.document == number else 0
        if len(tokens) > offset:
            self.held.append(_Held(place, number, document.file, document.row, tokens[offset:], offset))
            self.tokens += len(tokens) - offset

    def window(self, tokens: np.ndarray, starts: np.ndarray) -> list[Piece]:
        """Copies the next window and its look-ahead token, [L + 1], and drops the window."""
        at, L, pieces = 0, len(tokens) - 1, []
        for held in self.held:
            n = min(len(held.tokens), L + 1 - at)
            tokens[at : at + n] = held.tokens[:n]
            starts[at] = held.offset == 0
            if at < L:
                pieces.append(Piece(at, min(n, L - at), "stream", held.number, held.offset, held.file, held.row))
            at += n
            if at > L:
                break
        self.drop(L)
        return pieces

    def drop(self, count: int) -> None:
        self.tokens -= count
        self.step += 1
        while count:
            first = self.held[0]
            n = min(count, len(first.tokens))
            if n == len(first.tokens):
                self.held.popleft()
            else:
                first.tokens, first.offset = first.tokens[n:], first.offset + n
            count -= n


class Lanes:
    """Lanes [first, first + n) of B, read side by side by one reader. Memory: blocks, and what lanes are apart."""

    def __init__(
        self,
        stream: Stream,
        batch: int,
        first: int,
        starts: Sequence[tuple[int, Cursor | None]],
        *,
        length: int,
        seed: int,
        shuffle: bool,
    ):
        """`starts`: the step of the next window of each lane, and where it begins; None: the lane's beginning."""
        self.stream, self.batch, self.first, self.length = stream, batch, first, length
        self.lanes = [_Lane(step, cursor) for step, cursor in starts]
        self._tokenizer = load_tokenizer(stream.folder / "tokenizer")
        place = min((c.place if c else Place() for _, c in starts), key=lambda p: (p.number, p.epoch))
        self._blocks = blocks(stream, place, seed, shuffle)

    @property
    def step(self) -> int:
        """The first that every lane can still give."""
        return max(lane.step for lane in self.lanes)

    def cursors(self) -> list[Cursor]:
        """Of the windows of the next step, after a `read`."""
        first = [lane.held[0] for lane in self.lanes]
        return [Cursor(held.place, held.number, held.offset) for held in first]

    def read(self, step: int, tokens: np.ndarray, starts: np.ndarray) -> list[list[Piece]]:
        """Copies the windows of a step, int32 and bool (zeros) [n, L + 1]; returns the documents of each lane."""
        for at in range(min(lane.step for lane in self.lanes), step):
            behind = [lane for lane in self.lanes if lane.step == at]
            self._fill(behind)
            for lane in behind:
                lane.drop(self.length)
        self._fill(self.lanes)
        return [lane.window(tokens[b], starts[b]) for b, lane in enumerate(self.lanes)]

    def _fill(self, lanes: Sequence[_Lane]) -> None:
        while short := [lane for lane in lanes if lane.tokens <= self.length]:
            while not all(lane.waiting for lane in short):
                self._deal(next(self._blocks))
            taken = [lane.waiting.popleft() for lane in short]
            encoded = self.stream.encode(self._tokenizer, [document for _, _, document in taken])
            for lane, (place, number, document), ids in zip(short, taken, encoded):
                lane.add(place, number, document, ids)

    def _deal(self, block: Block) -> None:
        for number, document in enumerate(block.documents, block.place.number):
            lane = number % self.batch - self.first
            if 0 <= lane < len(self.lanes):
                cursor = self.lanes[lane].cursor
                if cursor is None or number >= cursor.document:
                    self.lanes[lane].waiting.append((block.place, number, document))
