"""Muon's orthogonal update of matrices that live in wider, stacked and sharded arrays."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from pretrain.optimizer.config import Muon

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Jordan 2024: the quintic with the steepest slope at zero that keeps singular values within about [0.7, 1.2]."""
MATCHED_RMS = 0.2
"""Root mean square of a usual AdamW update (Moonlight, Liu et al. 2025, section 2.2)."""
NORM_EPS = 1e-7
"""Keeps a zero gradient zero (Jordan 2024)."""


class MatrixAxes(NamedTuple):
    """How many leading axes only stack matrices, and how many of the next are inputs and outputs of one."""

    batch: int
    inputs: int
    outputs: int

    def input_axes(self, ndim: int) -> tuple[int, ...]:
        self._check(ndim)
        return tuple(range(self.batch, self.batch + self.inputs))

    def output_axes(self, ndim: int) -> tuple[int, ...]:
        self._check(ndim)
        return tuple(range(self.batch + self.inputs, ndim))

    def _check(self, ndim: int) -> None:
        if sum(self) != ndim or not self.inputs or not self.outputs:
            raise ValueError(f"{self} does not describe the matrices of an array with {ndim} axes")


def orthogonal_update(kind: Muon, axes: MatrixAxes, momentum: jax.Array) -> jax.Array:
    """The (semi-)orthogonal matrices nearest to `momentum`'s, scaled by `kind.scale`, in its shape and layout."""
    batch = momentum.shape[: axes.batch]
    rows = math.prod(momentum.shape[i] for i in axes.input_axes(momentum.ndim))
    columns = math.prod(momentum.shape[i] for i in axes.output_axes(momentum.ndim))
    layouts = _layouts(jax.typeof(momentum).sharding, momentum.shape, axes.batch)
    whole = _through(momentum, layouts[1:]).reshape(*batch, rows, columns)
    near = newton_schulz(whole.astype(kind.iteration_dtype), kind.iterations).astype(jnp.float32)
    if kind.scale == "match_rms":
        scale = MATCHED_RMS * math.sqrt(max(rows, columns))
    else:
        scale = math.sqrt(max(1, columns / rows))
    return scale * _through(near.reshape(momentum.shape), layouts[-2::-1])


@partial(jax.jit, static_argnames="iterations")  # Traced once for all parameters of a shape.
def newton_schulz(x: jax.Array, iterations: int) -> jax.Array:
    """U S V^T with S near 1 for every matrix U D V^T in the last two axes of x; leading axes are independent.

    Each iteration maps every singular value s (in units of the Frobenius norm) to a s + b s^3 + c s^5.
    """
    if tall := x.shape[-2] > x.shape[-1]:
        x = x.mT  # The products are square in the shorter side.
    norm = jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(-2, -1), keepdims=True))
    x = x / (norm + NORM_EPS).astype(x.dtype)
    a, b, c = COEFFICIENTS

    def iterate(_, x):
        gram = x @ x.mT
        return a * x + (b * gram + c * gram @ gram) @ x

    x = jax.lax.fori_loop(0, iterations, iterate, x)
    return x.mT if tall else x


def _layouts(stored: NamedSharding, shape: tuple[int, ...], batch: int) -> list[NamedSharding]:
    """Layouts from `stored` to one that keeps every matrix whole, each one collective after the last.

    A mesh axis that shards a matrix moves to a stacked axis it divides: each device then orthogonalises some of the
    layers. Where there is none, it is gathered and every device repeats the work. One mesh axis moves at a time: XLA
    makes that an all-to-all, but turns a move of two at once into a full replication.
    """
    sizes = stored.mesh.shape
    spec = [[] if s is None else list(s) if isinstance(s, tuple) else [s] for s in stored.spec]
    layouts = [stored]
    for axis in range(batch, len(shape)):
        while spec[axis]:
            moved = spec[axis].pop()
            for stacked in range(batch):
                if shape[stacked] % math.prod(sizes[name] for name in (*spec[stacked], moved)) == 0:
                    spec[stacked].append(moved)
                    break
            layouts.append(NamedSharding(stored.mesh, PartitionSpec(*(tuple(s) or None for s in spec))))
    return layouts


def _through(x: jax.Array, layouts: list[NamedSharding]) -> jax.Array:
    for layout in layouts:
        x = jax.sharding.reshard(x, layout)
    return x
