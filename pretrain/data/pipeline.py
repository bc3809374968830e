"""Batches as a pure function of (seed, step), whoever computes them.

Sample g = step * batch + row of the run is window permute(g mod n) of epoch g // n, with n windows in an epoch.
"""

import functools
import hashlib
import itertools
import os
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from pretrain.data.config import DataConfig
from pretrain.data.pack import Batch, pack, padding
from pretrain.data.permute import permute
from pretrain.data.processes import die_with_parent
from pretrain.data.windows import Piece, Split
from pretrain.errors import UserError

NO_END = 1 << 62  # Grain wants to know how many steps there are
HASHED = ("tokens", "segments", "targets")


@dataclass(frozen=True)
class Pipeline:
    split: Split
    sequence_length: int
    batch: int  # rows of the global batch
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self):
        if not self.split.tokens:
            message = f"found no document in the {self.split.name} split of {self.split.folder}, expected some"
            raise UserError(f"{message}, do prepare more text or change validation_fraction")

    @classmethod
    def from_config(cls, split: Split, data: DataConfig, batch: int) -> "Pipeline":
        return cls(split, data.sequence_length, batch, data.seed, data.shuffle)

    def windows(self, step: int, rows: slice = slice(None)) -> np.ndarray:
        """Number of the window behind each row."""
        sample = step * self.batch + np.arange(self.batch)[rows]
        n = self.split.windows(self.sequence_length)
        epochs, places = np.divmod(sample, n)
        if self.shuffle:
            for epoch in np.unique(epochs):
                now = epochs == epoch
                places[now] = permute(places[now], n, seed=self.seed, epoch=int(epoch))
        return places

    def rows(self, step: int, rows: slice = slice(None)) -> Batch:
        """Rows of the global batch of `step`: see `pack` for the arrays."""
        return read_windows(self.split, self.windows(step, rows), self.sequence_length)

    def iterate(
        self,
        start_step: int,
        *,
        rows: slice = slice(None),
        stop_step: int | None = None,
        workers: int = 0,
        read_threads: int = 1,
        prefetch: int = 2,
    ) -> Generator[Batch, None, None]:
        """`rows(step, rows)` for each step from `start_step` on, computed ahead; close it to end its workers."""
        steps = range(start_step, NO_END if stop_step is None else stop_step)
        if workers == 0 and read_threads == 0:
            return (self.rows(step, rows) for step in steps)
        return _prefetched(_Rows(self, rows), steps, workers, read_threads, prefetch)

    def sources(self, step: int, row: int) -> list[Piece]:
        """Where the tokens of a row came from; piece i is the row's segment i + 1."""
        window = int(self.windows(step, slice(row, row + 1))[0])
        return self.split.pieces(window * self.sequence_length, self.sequence_length)


@dataclass(frozen=True)
class _Rows:
    pipeline: Pipeline
    rows: slice

    def __call__(self, step: int) -> Batch:
        return self.pipeline.rows(int(step), self.rows)


def _prefetched(
    build: _Rows, steps: range, workers: int, read_threads: int, prefetch: int
) -> Generator[Batch, None, None]:
    import grain
    from absl import flags

    if workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which only an absl program parses
    dataset = grain.MapDataset.range(steps.start, steps.stop).map(build)
    dataset = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=max(prefetch, read_threads))
    )
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
        dataset = dataset.mp_prefetch(options, worker_init_fn=functools.partial(_start_worker, os.getpid()))
    with closing(iter(dataset)) as batches:
        yield from batches


def _start_worker(parent: int, number: int, workers: int) -> None:
    die_with_parent(parent)


def read_windows(split: Split, numbers: np.ndarray, length: int) -> Batch:
    B = len(numbers)
    tokens, starts = np.zeros((B, length + 1), np.int32), np.zeros((B, length + 1), bool)
    lengths = [split.fill(int(n) * length, tokens[b], starts[b]) for b, n in enumerate(numbers)]
    return pack(tokens, starts, np.array(lengths))


def validation_batches(split: Split, sequence_length: int, batch: int, limit: int | None = None) -> Iterator[Batch]:
    """Each window once, in order, at most `limit` batches; the last is filled up with rows of padding."""
    n = split.windows(sequence_length)
    for begin in itertools.islice(range(0, n, batch), limit):
        numbers = np.arange(begin, min(begin + batch, n))
        rows, rest = read_windows(split, numbers, sequence_length), padding(batch - len(numbers), sequence_length)
        yield {name: np.concatenate([rows[name], rest[name]]) for name in rows}


def row_hashes(batch: Batch) -> list[bytes]:
    """One digest for each row, of its token, segment and target bytes (little-endian int32)."""
    arrays = [np.ascontiguousarray(batch[name], "<i4") for name in HASHED]
    return [
        hashlib.blake2b(b"".join(a[b].tobytes() for a in arrays), digest_size=16).digest()
        for b in range(len(arrays[0]))
    ]


def combine(hashes: list[bytes]) -> str:
    """The hash of a global batch from those of its rows, in order, whichever hosts computed them."""
    return hashlib.blake2b(b"".join(hashes), digest_size=16).hexdigest()


def batch_hash(batch: Batch) -> str:
    return combine(row_hashes(batch))
