"""A matrix stored in blocks of columns, each one piece of memory: what few rows are multiplied with fastest on CPU.

XLA's CPU compiler rearranges the whole matrix for every product of two rows or more. In blocks it already is as it
needs it: `benchmarks/decode_cpu.py` makes about a quarter more tokens with 8 rows.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

WIDTH = 16
"""Columns of a block: two vector registers of f32 hold a row of them."""
ROWS = 32
"""More rows are faster in one product with the whole matrix; so is a single row."""


@partial(jax.tree_util.register_dataclass, data_fields=["blocks_nIj"], meta_fields=["shape"])
@dataclass(frozen=True)
class Columns:
    blocks_nIj: jax.Array
    shape: tuple[int, ...]
    """Of the matrix, its first dimension (or more) contracted."""

    @staticmethod
    def of(w: jax.Array, contract: int) -> "Columns":
        """`w[IN, ...]`, of which the first `contract` dimensions are summed over."""
        inner = math.prod(w.shape[:contract])
        flat = w.reshape(inner, -1)
        flat = jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % WIDTH)))
        return Columns(flat.reshape(inner, -1, WIDTH).swapaxes(0, 1), w.shape)

    def product(self, x_RI: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """[R, columns]."""
        n, inner, _ = self.blocks_nIj.shape
        columns = math.prod(self.shape) // inner
        if not 1 < x_RI.shape[0] <= ROWS:
            w = self.blocks_nIj.swapaxes(0, 1).reshape(inner, -1)
            return jnp.matmul(x_RI, w, preferred_element_type=dtype)[:, :columns]
        x_nRI = jnp.broadcast_to(x_RI, (n, *x_RI.shape))
        y_nRj = jnp.matmul(x_nRI, self.blocks_nIj, preferred_element_type=dtype)
        return y_nRj.swapaxes(0, 1).reshape(x_RI.shape[0], -1)[:, :columns]
