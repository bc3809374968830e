"""A matrix stored in blocks of columns, each one piece of memory: what few rows are multiplied with fastest on CPU.

XLA's CPU compiler rearranges the whole matrix for every product of two rows or more. In blocks it already is as it
needs it: `benchmarks/decode_cpu.py` makes about a quarter more tokens with 8 rows.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

WIDTH = 32
"""Columns of a block: a row of them is two vector registers of f32 with AVX-512, four with AVX2."""
ROWS = 32
"""More rows are faster in one product with the whole matrix; so is a single row."""
PART = 64
"""Blocks multiplied at once: XLA writes the rows anew for every block of a product, and these copies stay in cache."""


@partial(jax.tree_util.register_dataclass, data_fields=["parts_nIj"], meta_fields=["shape"])
@dataclass(frozen=True)
class Columns:
    parts_nIj: tuple[jax.Array, ...]
    shape: tuple[int, ...]
    """Of the matrix, its first dimension (or more) contracted."""

    @staticmethod
    def of(w: jax.Array, contract: int) -> "Columns":
        """`w[IN, ...]`, of which the first `contract` dimensions are summed over."""
        inner = math.prod(w.shape[:contract])
        flat = w.reshape(inner, -1)
        flat = jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % WIDTH)))
        blocks_nIj = flat.reshape(inner, -1, WIDTH).swapaxes(0, 1)
        return Columns(tuple(blocks_nIj[i : i + PART] for i in range(0, len(blocks_nIj), PART)), w.shape)

    @property
    def dtype(self) -> jnp.dtype:
        return self.parts_nIj[0].dtype

    def product(self, x_RI: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """[R, columns]."""
        columns = math.prod(self.shape) // x_RI.shape[1]
        few = 1 < x_RI.shape[0] <= ROWS
        product = _blockwise if few else _whole
        parts = [product(x_RI, part_nIj, dtype) for part_nIj in self.parts_nIj]
        return jnp.concatenate(parts, axis=1)[:, :columns]


def _blockwise(x_RI: jax.Array, w_nIj: jax.Array, dtype: jnp.dtype) -> jax.Array:
    x_nRI = jnp.broadcast_to(x_RI, (len(w_nIj), *x_RI.shape))
    y_nRj = jnp.matmul(x_nRI, w_nIj, preferred_element_type=dtype)
    return y_nRj.swapaxes(0, 1).reshape(x_RI.shape[0], -1)


def _whole(x_RI: jax.Array, w_nIj: jax.Array, dtype: jnp.dtype) -> jax.Array:
    w_IN = w_nIj.swapaxes(0, 1).reshape(x_RI.shape[1], -1)
    return jnp.matmul(x_RI, w_IN, preferred_element_type=dtype)
