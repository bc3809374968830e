"""One matrix product for each group of rows: what the experts of a mixture compute.

On TPU the kernel of MegaBlocks (Gale et al. 2022, arXiv:2211.15841) that JAX brings, or tokamax's. XLA's compilers for
CPU and GPU multiply every row by every matrix and mask, so there rows are laid out in blocks of one group each, and
each block is an ordinary product. So is everywhere that of a device with one expert.

n = rows sorted by group, E = groups, b = rows of a block, j = blocks.
"""

from functools import partial

import jax
import jax.numpy as jnp

from pretrain.sharding import place

BLOCK = 64
"""Rows, on CPU: fewer waste less at the end of a group, more read each matrix less often. With 8 experts of
256 x 512 and 8192 rows, on a Zen 3 core: 0.05 CPU-seconds forward, 0.27 with ragged_dot, 0.03 in one dense product."""
GPU_BLOCKS = (1024, 512, 256, 128)
"""The largest of which a group has four: a product fills the processor, and few rows are empty."""
TILES = ((512, 256, 128), (1024, 512, 256, 128), (1024, 512, 256, 128))
"""Rows, inputs and outputs of a tile on TPU: the largest that divide them, at most MaxText's defaults; in f32 512, so
that they fit in 16 MiB of fast memory."""


def grouped_matmul(x_nI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """y_nO: the first sizes[0] rows times w[0], the next sizes[1] times w[1], and so on.

    Rows after these may be anything, and so may what becomes of them, here and in the backward pass: nobody reads it.
    """
    platform = place.platform()
    if len(w_EIO) == 1:
        there_n1 = there(x_nI, sizes_E)
        return jnp.where(there_n1, jnp.where(there_n1, x_nI, 0) @ w_EIO[0], 0)
    if platform == "tpu" and all(n % 128 == 0 for n in (*x_nI.shape, w_EIO.shape[2])):
        return tiled(x_nI, w_EIO, sizes_E, place.schedule().kernels, False)
    if platform == "tpu":  # JAX asks for a layout within a stage of a pipeline, and takes it nowhere without a mesh
        return jax.lax.ragged_dot(x_nI, w_EIO, sizes_E, out_sharding=None if place.whole() else jax.P(None, None))
    block = BLOCK
    if platform == "gpu":
        block = next((b for b in GPU_BLOCKS if 4 * b * len(w_EIO) <= len(x_nI)), GPU_BLOCKS[-1])
    return blocked(place.like(x_nI, w_EIO), place.like(w_EIO, x_nI), sizes_E, block)


def there(x_nI: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """there_n1: which rows are in a group."""
    return jnp.arange(len(x_nI))[:, None] < jnp.sum(sizes_E)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def tiled(x_nI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, kernels: str, interpret: bool) -> jax.Array:
    """The same by the kernel of a TPU. XLA's `ragged_dot` copies all matrices in another order for the backward pass.

    `interpret`: run by JAX on any platform, for tests.
    """
    return _products(kernels, interpret)[0](x_nI, w_EIO, sizes_E)


def _tiled_backward(kernels: str, interpret: bool, residuals, dy_nO):
    x_nI, w_EIO, sizes_E = residuals
    by_rows, by_groups = _products(kernels, interpret)
    return by_rows(dy_nO, w_EIO, sizes_E, transpose_rhs=True), by_groups(x_nI, dy_nO, sizes_E), None


tiled.defvjp(
    lambda x, w, sizes, kernels, interpret: (tiled(x, w, sizes, kernels, interpret), (x, w, sizes)), _tiled_backward
)


def _products(kernels: str, interpret: bool):
    """(x_nI, w_EIO, sizes_E -> y_nO, with `transpose_rhs` of w_EOI; x_nI, y_nO, sizes_E -> w_EIO)."""
    if kernels == "tokamax":
        from tokamax._src.ops.ragged_dot import pallas_mosaic_tpu_kernel as kernel

        gmm = partial(kernel.gmm, precision=jax.lax.Precision.DEFAULT)
        tgmm, dtype = partial(kernel.tgmm, precision=jax.lax.Precision.DEFAULT), "out_dtype"
    else:
        from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm

        dtype = "preferred_element_type"

    def options(like: jax.Array, *lengths: int):
        most = 1024 if like.dtype.itemsize < 4 else 512
        tiles = tuple(next(t for t in of if t <= most and n % t == 0) for of, n in zip(TILES, lengths))
        return {"tiling": tiles, dtype: like.dtype, "interpret": interpret}

    def by_rows(x_nI, w_EIO, sizes_E, transpose_rhs=False):
        outputs = w_EIO.shape[1 if transpose_rhs else 2]
        return gmm(x_nI, w_EIO, sizes_E, **options(x_nI, *x_nI.shape, outputs), transpose_rhs=transpose_rhs)

    def by_groups(x_nI, dy_nO, sizes_E):
        return tgmm(x_nI.T, dy_nO, sizes_E, **options(x_nI, *x_nI.shape, dy_nO.shape[1]))

    return by_rows, by_groups


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def blocked(x_nI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, block: int = BLOCK) -> jax.Array:
    """The same in blocks of so many rows."""
    return _forward(x_nI, w_EIO, sizes_E, block)[0]


def _forward(x_nI, w_EIO, sizes_E, block: int):
    rows_n, expert_j = _layout(x_nI.shape[0], sizes_E, block)
    return _product("bI,IO->bO", x_nI, w_EIO, rows_n, expert_j, block), (x_nI, w_EIO, sizes_E, rows_n, expert_j)


def _backward(block: int, residuals, dy_nO):
    x_nI, w_EIO, sizes_E, rows_n, expert_j = residuals
    there_n1 = there(x_nI, sizes_E)
    dx_nI = _product("bO,IO->bI", dy_nO, w_EIO, rows_n, expert_j, block)

    def add(dw_EIO, of_block):
        x_bI, dy_bO, expert = of_block
        dw_IO = jnp.einsum("bI,bO->IO", x_bI, dy_bO, preferred_element_type=jnp.float32)
        return dw_EIO.at[expert].add(dw_IO), None

    spread = (_spread(jnp.where(there_n1, x, 0), rows_n, len(expert_j), block) for x in (x_nI, dy_nO))
    zeros = place.like(place.like(jnp.zeros(w_EIO.shape, jnp.float32), x_nI), dy_nO)
    dw_EIO, _ = jax.lax.scan(add, zeros, (*spread, expert_j))
    return dx_nI.astype(x_nI.dtype), dw_EIO.astype(w_EIO.dtype), None


blocked.defvjp(_forward, _backward)


def _layout(n: int, sizes_E: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """(place of each row among the blocks, group of each block): every group begins a new block."""
    blocks_E = -(-sizes_E // block)
    ends_E, first_E = jnp.cumsum(sizes_E), (jnp.cumsum(blocks_E) - blocks_E) * block
    group_n = jnp.searchsorted(ends_E, jnp.arange(n), side="right", method="compare_all")
    rows_n = jnp.arange(n) - (ends_E - sizes_E)[group_n] + first_E[group_n]
    rest_n = (jnp.arange(n) - ends_E[-1]) + jnp.sum(blocks_E) * block
    rows_n = jnp.where(group_n < sizes_E.shape[0], rows_n, rest_n)
    count = -(-n // block) + sizes_E.shape[0]
    expert_j = jnp.searchsorted(jnp.cumsum(blocks_E), jnp.arange(count), side="right", method="compare_all")
    return rows_n, jnp.minimum(expert_j, sizes_E.shape[0] - 1)


def _spread(x_nI: jax.Array, rows_n: jax.Array, blocks: int, block: int) -> jax.Array:
    """x_jbI with zeros between the groups."""
    zeros = place.like(jnp.zeros((blocks * block, x_nI.shape[1]), x_nI.dtype), x_nI)
    return zeros.at[rows_n].set(x_nI, unique_indices=True).reshape(blocks, block, -1)


def _product(spec: str, x_nI, w_EIO, rows_n, expert_j, block: int) -> jax.Array:
    dot = partial(jnp.einsum, spec, preferred_element_type=x_nI.dtype)
    blocks = (_spread(x_nI, rows_n, len(expert_j), block), expert_j)
    y_jbO = jax.lax.map(lambda of_block: dot(of_block[0], w_EIO[of_block[1]]), blocks)
    return y_jbO.reshape(-1, y_jbO.shape[-1])[rows_n]
