"""Batches from this host's rows to arrays of the whole mesh."""

from collections.abc import Generator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from pretrain.data.pipeline import Pipeline, combine, row_hashes
from pretrain.data.streamed import Streamed
from pretrain.objectives.batch import Batch, gathered
from pretrain.sharding import place

HostBatch = dict[str, np.ndarray]


def layout(mesh: Mesh, dimensions: int) -> NamedSharding:
    """Of an array whose first dimension is the rows of the global batch."""
    return NamedSharding(mesh, place.spec("batch", *[None] * (dimensions - 1)))


class Feed:
    """Knows which rows of a global batch this process needs, and puts them where they belong."""

    def __init__(self, mesh: Mesh, rows: int):
        self.mesh, self.count = mesh, rows
        indices = self._sharding(1).addressable_devices_indices_map((rows,)).values()
        needed = [index[0].indices(rows)[:2] for index in indices if index is not None]
        self.rows = slice(min(a for a, _ in needed), max(b for _, b in needed))

    def on_device(self, batch: HostBatch) -> Batch:
        return gathered({name: self._put(array) for name, array in batch.items()})

    def hash(self, batch: HostBatch) -> str:
        """Of the global batch; every process must call it for the same step."""
        hashes = row_hashes(batch)
        if jax.process_count() == 1:
            return combine(hashes)
        mine = np.zeros((self.count, len(hashes[0])), np.uint8)
        mine[self.rows] = [np.frombuffer(h, np.uint8) for h in hashes]
        everyone = np.max(multihost_utils.process_allgather(mine), axis=0)
        return combine([row.tobytes() for row in everyone])

    def _sharding(self, dimensions: int) -> NamedSharding:
        return layout(self.mesh, dimensions)

    def _put(self, array: np.ndarray) -> jax.Array:
        def part(index):
            begin, end, _ = index[0].indices(self.count)
            return array[begin - self.rows.start : end - self.rows.start]

        shape = (self.count, *array.shape[1:])
        return jax.make_array_from_callback(shape, self._sharding(array.ndim), part)


def train_batches(
    pipeline: Pipeline | Streamed, feed: Feed, start: int, stop: int, data
) -> Generator[HostBatch, None, None]:
    """This host's rows of the batches of steps [start, stop)."""
    return pipeline.iterate(
        start,
        rows=feed.rows,
        stop_step=stop,
        workers=data.workers,
        read_threads=data.read_threads,
        prefetch=data.prefetch,
    )
