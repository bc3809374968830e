"""Rows of tokens to the devices that hold what works on them, and back: expert parallelism (Lepikhin et al. 2020).

Inside `place.local`, over the mesh axes of the logical axis `expert`. X = devices, n = rows of this device, m = rows
that come to it, E = kinds of work, C = places for rows from one device to another.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pretrain.sharding import place

Work = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def visit(work: Work, x_nD: jax.Array, kind_n: jax.Array, kinds: int, most: int) -> jax.Array:
    """y_nD: row by row what `work(x_mD, kind_m, sizes)` makes of rows sorted by kind, on the device of that kind.

    `kind_n` is sorted. On a device kinds count from 0, `sizes` says how many rows are of each; rows after these are
    zeros that nobody reads. Nothing is dropped: `most` is a bound of what one device can send to another, and so many
    places are sent to each, filled or not.
    """
    sizes_E = jnp.sum(kind_n[:, None] == jnp.arange(kinds), axis=0, dtype=jnp.int32)
    axes, X = place.mesh_axes("expert"), place.devices("expert")
    if X == 1:
        return work(x_nD, kind_n, sizes_E)
    sizes_Xe = sizes_E.reshape(X, -1)
    here = sizes_Xe.shape[1]
    first_X = jnp.cumsum(sizes_Xe.sum(1)) - sizes_Xe.sum(1)
    to_n = kind_n // here
    seat_n = to_n * most + jnp.arange(kind_n.size) - first_X[to_n]

    def exchange(x: jax.Array) -> jax.Array:
        return jax.lax.all_to_all(x, axes, 0, 0, tiled=True)

    zeros = place.like(jnp.zeros((X * most, x_nD.shape[1]), x_nD.dtype), x_nD)
    x_mD = exchange(zeros.at[seat_n].set(x_nD, unique_indices=True))
    sizes_Xe = exchange(sizes_Xe)
    ends_Xe, seat_C = jnp.cumsum(sizes_Xe, axis=1), jnp.arange(most)
    kind_m = jnp.sum(seat_C[None, :, None] >= ends_Xe[:, None], axis=2).reshape(-1)
    order_m = jnp.argsort(kind_m, stable=True)
    y_mD = work(x_mD[order_m], jnp.minimum(kind_m[order_m], here - 1), sizes_Xe.sum(0))
    return exchange(y_mD[jnp.argsort(order_m)])[seat_n]


def scatter(x_BE: jax.Array) -> jax.Array:
    """[B, E, ...] -> [X * B, E / X, ...]: the rows of all devices, of the kinds of this one."""
    axes = place.mesh_axes("expert")
    return jax.lax.all_to_all(x_BE, axes, 1, 0, tiled=True) if axes else x_BE


def collect(y_BE: jax.Array) -> jax.Array:
    """The inverse of `scatter`."""
    axes = place.mesh_axes("expert")
    return jax.lax.all_to_all(y_BE, axes, 0, 1, tiled=True) if axes else y_BE
