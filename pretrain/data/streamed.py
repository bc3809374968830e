"""Batches straight from source files: the same objectives, no preparation (`Pipeline` reads what is prepared).

A batch is a function of (seed, step) here too: see `lanes`. Steps are read in order; any other is found from the last
place that the journal holds before it.
"""

import hashlib
import itertools
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from pretrain.data.config import DataConfig, Lengths
from pretrain.data.draws import Draws, row_keys
from pretrain.data.journal import Journal
from pretrain.data.lanes import Lanes, Stream
from pretrain.data.plan import Windows
from pretrain.data.processes import die_with_parent
from pretrain.data.rows import Batch, Raw, Transform, cut
from pretrain.data.windows import Piece
from pretrain.errors import UserError

NOTES = ("documents are tokenized as they are read, shuffled by files and by blocks of 1024",)


class _NoDocuments:
    """Stands for the split of a plan that needs no more of it than that there are tokens."""

    tokens = 1

    def __getattr__(self, name: str):
        raise UserError(
            "data.streaming: found an objective that arranges whole documents, expected one that reads windows of the "
            "stream; set data.streaming=False"
        )


@dataclass(frozen=True)
class Streamed:
    stream: Stream
    transform: Transform
    batch: int  # rows of the global batch
    seed: int = 0
    shuffle: bool = True
    lengths: tuple[Lengths, ...] = ()
    journaled: bool = True
    """Whether places are taken from the journal; they are written by `iterate` in any case."""
    _open: dict[tuple[int, int], "_Reader"] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def from_config(cls, stream: Stream, transform: Transform, data: DataConfig, batch: int) -> "Streamed":
        return cls(stream, transform, batch, data.seed, data.shuffle, data.lengths)

    def __getstate__(self):
        return {**self.__dict__, "_open": {}}

    @property
    def notes(self) -> tuple[str, ...]:
        return NOTES

    @cached_property
    def length(self) -> int:
        """Tokens of a window."""
        plan = self.transform.plan(_NoDocuments())  # pyright: ignore[reportArgumentType]
        assert isinstance(plan, Windows)
        return plan.length

    @cached_property
    def journal(self) -> Journal:
        what = (self.stream.digest, self.seed, self.shuffle, self.batch, self.length)
        return Journal(self.stream.folder / "cursors", hashlib.sha256(repr(what).encode()).hexdigest()[:16])

    def require(self, steps: int) -> None:
        """A stream has no end; raises UserError where the objective cannot read one."""
        assert self.length > 0

    def samples(self, step: int, rows: slice = slice(None)) -> np.ndarray:
        """Number in the run of each row of the global batch of `step`."""
        return step * self.batch + np.arange(self.batch)[rows]

    def raw(self, step: int, rows: slice = slice(None)) -> Raw:
        """Rows of the global batch of `step`, before the transform."""
        return self._at(step, rows).raw

    def rows(self, step: int, rows: slice = slice(None)) -> Batch:
        """Rows of the global batch of `step`: see the transform for the arrays."""
        return self.transform(self.raw(step, rows))

    def sources(self, step: int, row: int) -> list[Piece]:
        """Where the tokens of a row came from, in the order of `raw`."""
        for (first, stop), reader in self._open.items():
            if reader.step == step and first <= row < stop:
                return reader.pieces[row - first]
        return self._at(step, slice(row, row + 1)).pieces[0]

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
        """`rows(step, rows)` for each step from `start_step` on, computed ahead; close it to end its workers.

        Each worker tokenizes some of the rows.
        """
        if workers:
            return _by_workers(self, rows, start_step, stop_step, workers, prefetch)
        batches = self.journaling(start_step, stop_step, rows)
        return _ahead(batches, prefetch) if read_threads else batches

    def journaling(self, start: int, stop: int | None, rows: slice) -> Generator[Batch, None, None]:
        """The batches of steps one by one, with a line in the journal now and then."""
        step, reader = start, None
        while stop is None or step < stop:
            reader = self._at(step, rows)
            yield self.transform(reader.raw)
            step += 1
            if self.journal.due():
                self.journal.append(step, reader.lanes.first, reader.lanes.cursors())

    def _at(self, step: int, rows: slice) -> "_Reader":
        """A reader of these rows that has just read `step`."""
        first, stop, _ = rows.indices(self.batch)
        reader = self._open.get((first, stop))
        if reader is not None and reader.step == step:
            return reader
        if reader is None or reader.lanes.step != step:  # not the one that follows
            n = stop - first
            known = self.journal.latest(step, range(first, stop)) if self.journaled else [(0, None)] * n
            nearest = min(at for at, _ in known)
            if reader is None or not nearest <= reader.lanes.step <= step:
                how = {"length": self.length, "seed": self.seed, "shuffle": self.shuffle}
                reader = self._open[first, stop] = _Reader(Lanes(self.stream, self.batch, first, known, **how))
        reader.read(self, step)
        return reader


class _Reader:
    """Lanes, and what they gave last."""

    def __init__(self, lanes: Lanes):
        self.lanes, self.step = lanes, -1
        self.raw: Any = None
        self.pieces: list[list[Piece]] = []

    def read(self, streamed: Streamed, step: int) -> None:
        first, n, room = self.lanes.first, len(self.lanes.lanes), streamed.transform.room
        tokens, starts = np.zeros((n, room + 1), np.int32), np.zeros((n, room + 1), bool)
        L = streamed.length
        self.pieces = self.lanes.read(step, tokens[:, : L + 1], starts[:, : L + 1])
        keys = row_keys(streamed.seed, streamed.samples(step, slice(first, first + n)), "train")
        raw = Raw(tokens=tokens, starts=starts, lengths=np.full(n, L, np.int64), draws=Draws(keys))
        now = [one for one in streamed.lengths if one.step <= step]
        self.raw, self.step = cut(raw, now[-1].choices) if now else raw, step


def _ahead(batches: Generator[Batch, None, None], prefetch: int) -> Generator[Batch, None, None]:
    """The same, made by a thread while the caller does something else."""
    ready: queue.Queue = queue.Queue(prefetch)
    stopped = threading.Event()

    def put(item) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                put(batch)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # raised again where it is seen
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from _until_none(ready.get)
    finally:
        stopped.set()
        thread.join()
        batches.close()


def _until_none(get: Callable) -> Iterator[Batch]:
    while (item := get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item


def _by_workers(
    streamed: Streamed, rows: slice, start: int, stop: int | None, workers: int, prefetch: int
) -> Generator[Batch, None, None]:
    first, end, _ = rows.indices(streamed.batch)
    edges = np.linspace(first, end, min(workers, end - first) + 1).astype(int).tolist()
    context = multiprocessing.get_context("spawn")  # not fork: the caller may have threads of XLA
    sides = []
    for a, b in itertools.pairwise(edges):
        ready = context.Queue(prefetch)
        arguments = (ready, streamed, slice(a, b), start, stop, os.getpid())
        sides.append((context.Process(target=_work, args=arguments, daemon=True), ready))
    for process, _ in sides:
        process.start()
    try:
        streams = [_until_none(lambda p=process, q=ready: _from(p, q)) for process, ready in sides]
        for parts in zip(*streams):
            yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    finally:
        for process, _ in sides:
            process.terminate()
        for process, _ in sides:
            process.join()


def _from(process: Any, ready: Any):
    while True:
        try:
            return ready.get(timeout=1)
        except queue.Empty:
            if not process.is_alive():
                raise UserError(
                    f"found a worker that reads text ended with {process.exitcode}, expected it to go on; look for "
                    "memory, lower data.workers, and repeat the command; it continues"
                ) from None


def _work(ready: Any, streamed: Streamed, rows: slice, start: int, stop: int | None, parent: int) -> None:
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too, and the run still asks for batches
    try:
        for batch in streamed.journaling(start, stop, rows):
            ready.put(batch)
        ready.put(None)
    except Exception as error:
        ready.put(error)
