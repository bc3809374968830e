"""Batches as a pure function of (seed, step), whoever computes them.

Sample g = step * batch + row of the run is a row of the plan, see `order`: without a mixture row permute(g mod n) of
epoch g // n, with n rows in an epoch. What is drawn at random for it comes from (seed, g).
"""

import functools
import hashlib
import itertools
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from pretrain.data.config import DataConfig, Lengths
from pretrain.data.config_mixture import Mixture
from pretrain.data.draws import row_keys
from pretrain.data.mixture import Mixed, Part
from pretrain.data.order import Epochs, Order
from pretrain.data.plan import Joined, Plan
from pretrain.data.processes import die_with_parent
from pretrain.data.rows import Batch, Raw, Transform, cut, read
from pretrain.data.windows import Piece, Split
from pretrain.errors import UserError

TOGETHER, KEPT = 2048, 8
"""Samples whose rows are looked up at a time, and how many such blocks are remembered: workers take turns at steps."""
NO_END = 1 << 62  # Grain wants to know how many steps there are


@dataclass(frozen=True)
class Pipeline:
    split: Split
    transform: Transform
    batch: int  # rows of the global batch
    seed: int = 0
    shuffle: bool = True
    mixture: Mixture | None = None
    lengths: tuple[Lengths, ...] = ()
    _known: dict[int, tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    """The numbers of neighbouring steps, which are cheaper together."""

    def __post_init__(self):
        if not self.split.tokens:
            message = f"found no document in the {self.split.name} split of {self.split.folder}, expected some"
            raise UserError(f"{message}; prepare more text or change validation_fraction")

    @classmethod
    def from_config(cls, split: Split, transform: Transform, data: DataConfig, batch: int) -> "Pipeline":
        return cls(split, transform, batch, data.seed, data.shuffle, data.mixture, data.lengths)

    @functools.cached_property
    def plan(self) -> Plan:
        return plan_of(self.split, self.transform)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the rows, a sentence each."""
        return self.plan.notes

    @functools.cached_property
    def order(self) -> Order:
        if self.mixture is None:
            return Epochs(self.plan.rows, self.seed, self.shuffle)
        return Mixed(self.mixture, self.parts, batch=self.batch, seed=self.seed, shuffle=self.shuffle)

    @property
    def parts(self) -> list[Part]:
        """The parts of the corpus, where each one's rows are in the plan."""
        tokens = {name: sum(s.tokens for s in self.split.shards if s.part == name) for name in self.split.parts}
        first = self.plan.first if isinstance(self.plan, Joined) else np.array([0, self.plan.rows])
        return [Part(name, int(a), int(b - a), n) for (name, n), a, b in zip(tokens.items(), first, first[1:])]

    def require(self, steps: int) -> None:
        """Raises UserError where there are fewer."""
        ends = self.order.ends
        if ends is not None and ends < steps * self.batch:
            raise UserError(
                f"data.mixture: every part is used up after {ends // self.batch} steps, expected steps={steps}; "
                "raise its caps, or lower steps"
            )

    def samples(self, step: int, rows: slice = slice(None)) -> np.ndarray:
        """Number in the run of each row of the global batch of `step`."""
        return step * self.batch + np.arange(self.batch)[rows]

    def windows(self, step: int, rows: slice = slice(None)) -> np.ndarray:
        """Number in the plan of each row."""
        return self._numbers(step)[0][rows]

    def _numbers(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(row of the plan, key of what is drawn) of each row of a step."""
        steps = max(1, TOGETHER // self.batch)
        block, place = divmod(step, steps)
        found = self._known.get(block)
        if found is None:
            end = (block + 1) * steps * self.batch
            if (ends := self.order.ends) is not None and ends >= (step + 1) * self.batch:
                end = min(end, ends // self.batch * self.batch)
            samples = np.arange(block * steps * self.batch, end)
            found = self.order.rows(samples), row_keys(self.seed, samples, "train")
            for old in list(self._known)[: 1 - KEPT]:
                self._known.pop(old, None)
            self._known[block] = found
        numbers, keys = found
        own = slice(place * self.batch, (place + 1) * self.batch)
        return numbers[own], keys[own]

    def raw(self, step: int, rows: slice = slice(None)) -> Raw:
        """Rows of the global batch of `step`, before the transform."""
        numbers, keys = self._numbers(step)
        raw = read(self.split, self.plan, self.transform.room, numbers[rows], keys[rows])
        now = [one for one in self.lengths if one.step <= step]
        return cut(raw, now[-1].choices) if now else raw

    def rows(self, step: int, rows: slice = slice(None)) -> Batch:
        """Rows of the global batch of `step`: see the transform for the arrays."""
        return self.transform(self.raw(step, rows))

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
        """Where the tokens of a row came from, in the order of `raw`; packed, piece i is segment i + 1.

        With `lengths` a piece may be several segments.
        """
        out, at = [], 0
        for position, n in self.plan.runs(int(self.windows(step, slice(row, row + 1))[0])):
            out += [replace(p, start=at + p.start) for p in self.split.pieces(position, n)]
            at += n
        return out


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too, and the run still asks for batches


def plan_of(split: Split, transform: Transform) -> Plan:
    """Raises UserError where it has no row."""
    names = split.parts
    if len(names) > 1:
        parts = [Split(split.folder, split.name, name) for name in names]
        plan: Plan = Joined([transform.plan(part) for part in parts], [part.tokens for part in parts])
    else:
        plan = transform.plan(split)
    if not plan.rows:
        found = "; ".join(("found no text that makes a row", *plan.notes))
        raise UserError(
            f"{split.folder}, {split.name} split: {found}; raise data.sequence_length or prepare other text"
        )
    return plan


def validation_batches(split: Split, transform: Transform, batch: int, limit: int | None = None) -> Iterator[Batch]:
    """Each row of the plan once, always the same, at most `limit` batches; padding fills the last.

    In order; the rows of parts are spread evenly over all.
    """
    plan = plan_of(split, transform)
    order = _spread(plan.first) if isinstance(plan, Joined) else np.arange(plan.rows)
    for begin in itertools.islice(range(0, plan.rows, batch), limit):
        numbers = order[begin : begin + batch]
        rows = transform(read(split, plan, transform.room, numbers, row_keys(0, numbers, "validation")))
        missing = batch - len(numbers)
        yield {name: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)) for name, a in rows.items()}


def _spread(first: np.ndarray) -> np.ndarray:
    """int64, all rows: row i of a part of n stands at (i + 1/2) / n."""
    return np.argsort(np.concatenate([(np.arange(n) + 0.5) / n for n in np.diff(first)]), kind="stable")


def row_hashes(batch: Batch) -> list[bytes]:
    """One digest for each row, of the little-endian bytes of all its arrays in the order of their names."""
    arrays = [np.ascontiguousarray(a, a.dtype.newbyteorder("<")) for _, a in sorted(batch.items())]
    return [
        hashlib.blake2b(b"".join(a[b].tobytes() for a in arrays), digest_size=16).digest()
        for b in range(len(arrays[0]))
    ]


def combine(hashes: list[bytes]) -> str:
    """The hash of a global batch from those of its rows, in order, whichever hosts computed them."""
    return hashlib.blake2b(b"".join(hashes), digest_size=16).hexdigest()


def batch_hash(batch: Batch) -> str:
    return combine(row_hashes(batch))
