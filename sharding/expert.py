"""Rows of tokens to the devices that hold what works on them, and back: expert parallelism (Lepikhin et al. 2020).

Inside `place.local`, over the mesh axes of the logical axis `expert`. X = devices, n = rows of this device, m = places
for rows that come to it, E = kinds of work, e = those of one device.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pretrain.sharding import place

Work = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def visit(work: Work, x_nD: jax.Array, kind_n: jax.Array, kinds: int, most: int) -> jax.Array:
    """y_nD: row by row what `work(x_mD, kind_m, sizes)` makes of rows sorted by kind, on the device of that kind.

    `kind_n` is sorted. On a device kinds count from 0, `sizes` says how many rows are of each; rows after these are
    zeros that nobody reads. Nothing is dropped: there are places for `most` rows from each device, which is a bound of
    what one can send to another. Only rows that there are travel.
    """
    sizes_E = jnp.sum(kind_n[:, None] == jnp.arange(kinds), axis=0, dtype=jnp.int32)
    axes, X = place.mesh_axes("expert"), place.devices("expert")
    if X == 1:
        return work(x_nD, kind_n, sizes_E)

    def exchange(x_Xe: jax.Array) -> jax.Array:
        return jax.lax.all_to_all(x_Xe, axes, 0, 0, tiled=True)

    sizes_Xe = sizes_E.reshape(X, -1)
    begin_Xe = _before(sizes_E, 0).reshape(X, -1)
    come_Xe = exchange(sizes_Xe)
    total_e = come_Xe.sum(0)
    at_Xe = _before(total_e, 0) + _before(come_Xe, 0)  # of each kind those of all devices, one after the other
    x_mD = place.like(jnp.zeros((X * most, x_nD.shape[1]), x_nD.dtype), x_nD)
    x_mD = _ragged(x_nD, x_mD, begin_Xe, sizes_Xe, exchange(at_Xe), come_Xe)
    kind_m = jnp.sum(jnp.arange(X * most)[:, None] >= jnp.cumsum(total_e), axis=1)
    y_mD = work(x_mD, jnp.minimum(kind_m, len(total_e) - 1), total_e)
    return _ragged(y_mD, jnp.zeros_like(x_nD), at_Xe, come_Xe, exchange(begin_Xe), sizes_Xe)


def _before(x: jax.Array, axis: int) -> jax.Array:
    """The sum of what stands before."""
    return jnp.cumsum(x, axis) - x


def _ragged(x_nD: jax.Array, out_mD: jax.Array, begin_Xe, sizes_Xe, at_Xe, come_Xe) -> jax.Array:
    """`out_mD` with what all devices send here: `sizes` rows of `x` from `begin`, to the receiver's rows from `at`.

    `jax.lax.ragged_all_to_all` where the platform has it; XLA's CPU compiler does not, so there everybody reads all.
    """
    axes = place.mesh_axes("expert")
    if place.platform() != "cpu":
        given = (s.reshape(-1) for s in (begin_Xe, sizes_Xe, at_Xe, come_Xe))
        x, out = (_in_tiles(x) for x in (x_nD, out_mD))
        return jax.lax.ragged_all_to_all(x, out, *given, axis_name=axes).reshape(out_mD.shape)
    x_XnD = jnp.broadcast_to(x_nD, (len(begin_Xe), *x_nD.shape))
    x_XnD, *sent = (jax.lax.all_to_all(x, axes, 0, 0, tiled=True) for x in (x_XnD, begin_Xe, sizes_Xe, at_Xe))
    begin_c, sizes_c, at_c = (s.reshape(-1) for s in sent)
    row_m = jnp.arange(len(out_mD))
    in_mc = (row_m[:, None] >= at_c) & (row_m[:, None] < at_c + sizes_c)
    c_m = jnp.argmax(in_mc, axis=1)
    x_mD = x_XnD[c_m // begin_Xe.shape[1], begin_c[c_m] + row_m - at_c[c_m]]
    return jnp.where(jnp.any(in_mc, axis=1)[:, None], x_mD, out_mD)


def _in_tiles(x_nD: jax.Array) -> jax.Array:
    """Rows that are whole tiles of a TPU, where the width allows it: they travel one by one, and one that fills two of
    eight lines takes three times as long to write."""
    n, D = x_nD.shape
    return x_nD.reshape(n, 8, D // 8) if D % 1024 == 0 else x_nD


def scatter(x_BE: jax.Array) -> jax.Array:
    """[B, E, ...] -> [X * B, E / X, ...]: the rows of all devices, of the kinds of this one."""
    axes = place.mesh_axes("expert")
    return jax.lax.all_to_all(x_BE, axes, 1, 0, tiled=True) if axes else x_BE


def collect(y_BE: jax.Array) -> jax.Array:
    """The inverse of `scatter`."""
    axes = place.mesh_axes("expert")
    return jax.lax.all_to_all(y_BE, axes, 0, 1, tiled=True) if axes else y_BE
