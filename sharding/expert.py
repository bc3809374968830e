"""Rows of tokens to the devices that hold what works on them, and back: expert parallelism (Lepikhin et al. 2020).

Inside `place.local`, over the mesh axes of the logical axis `expert`. X = devices, n = rows of this device, m = places
for rows that come to it, E = kinds of work, e = those of one device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pretrain.sharding import place

Weights = dict[str, jax.Array]
Hidden = dict[str, jax.Array]
"""By the names of the tensors that remat may keep."""
SLACK = 9 / 8
"""Rows that are worked on at a time, over those that come to a device if all have as much to do."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done with rows sorted by kind: `y_cD = out_of(weights, into(weights, x_cD, kind_c, sizes_e), kind_c,
    sizes_e)`. Rows after those that `sizes` counts may be anything: it reads none of them, forwards or backwards, and
    nobody reads what becomes of them. It speaks to no other device: they do it at other times, more or less often."""

    into: Callable[[Weights, jax.Array, jax.Array, jax.Array], Hidden]
    out_of: Callable[[Weights, Hidden, jax.Array, jax.Array], jax.Array]


def visit(work: Work, weights: Weights, x_nD: jax.Array, kind_n: jax.Array, kinds: int, most: int) -> jax.Array:
    """y_nD: row by row what `work` makes of them, on the device of their kind.

    `kind_n` is sorted. On a device kinds count from 0. Nothing is dropped: there are places for `most` rows from each
    device, which is a bound of what one can send to another. Only rows that there are travel, and only places that
    they fill are worked on: what `into` makes of them is kept for the backward pass.
    """
    sizes_E = jnp.sum(kind_n[:, None] == jnp.arange(kinds), axis=0, dtype=jnp.int32)
    if place.devices("expert") == 1:
        return work.out_of(weights, named(work.into(weights, x_nD, kind_n, sizes_E)), kind_n, sizes_E)
    x_nD = place.like(x_nD, *jax.tree.leaves(weights))
    return _visit(work, most, jax.tree.map(lambda w: place.like(w, x_nD), weights), x_nD, sizes_E)


def named(hidden: Hidden) -> Hidden:
    return {name: checkpoint_name(h, name) for name, h in hidden.items()}


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _visit(work: Work, most: int, weights: Weights, x_nD: jax.Array, sizes_E: jax.Array) -> jax.Array:
    return _forward(work, most, weights, x_nD, sizes_E)[0]


def _forward(work: Work, most: int, weights: Weights, x_nD: jax.Array, sizes_E: jax.Array):
    way, parts = _Way.of(sizes_E), _Parts.of(len(x_nD), most)
    x_mD = way.there(x_nD, parts.places)

    def step(c, kept):
        kind_c, sizes_e = parts.part(c, way.total_e)
        hidden_c = work.into(weights, parts.cut(x_mD, c), kind_c, sizes_e)
        return parts.put(kept, (hidden_c, work.out_of(weights, hidden_c, kind_c, sizes_e)), c)

    one = jax.eval_shape(lambda x: work.into(weights, parts.cut(x, 0), *parts.part(0, way.total_e)), x_mD)
    empty = jax.tree.map(lambda h: _places(parts.places, h, x_nD), (one, x_nD))
    hidden_m, y_mD = jax.lax.fori_loop(0, parts.filled(way.total_e), step, empty)
    return way.back(y_mD, len(x_nD)), (weights, x_mD, named(hidden_m), way)


def _backward(work: Work, most: int, residuals, dy_nD: jax.Array):
    weights, x_mD, hidden_m, way = residuals
    parts = _Parts.of(len(dy_nD), most)
    dy_mD = way.there(dy_nD, parts.places)

    def step(c, kept):
        kind_c, sizes_e = parts.part(c, way.total_e)
        hidden_c = jax.tree.map(lambda h: parts.cut(h, c), hidden_m)
        _, pull = jax.vjp(lambda h: work.out_of(weights, h, kind_c, sizes_e), hidden_c)
        (dhidden_c,) = pull(parts.cut(dy_mD, c))
        _, pull = jax.vjp(lambda x: work.into(weights, x, kind_c, sizes_e), parts.cut(x_mD, c))
        return parts.put(kept, (dhidden_c, *pull(dhidden_c)), c)

    empty = jax.tree.map(lambda x: _places(parts.places, x, dy_nD), (hidden_m, dy_nD))
    dhidden_m, dx_mD = jax.lax.fori_loop(0, parts.filled(way.total_e), step, empty)
    # The weights' at once: they are not added up part by part, and a product by groups reads no more than these.
    kind_m, _ = _Parts(size=parts.places, count=1).part(0, way.total_e)
    _, pull = jax.vjp(lambda w: work.out_of(w, hidden_m, kind_m, way.total_e), weights)
    (late,) = pull(dy_mD)
    _, pull = jax.vjp(lambda w: work.into(w, x_mD, kind_m, way.total_e), weights)
    (early,) = pull(dhidden_m)
    return jax.tree.map(jnp.add, late, early), way.back(dx_mD, len(dy_nD)), None


_visit.defvjp(_forward, _backward)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["begin_Xe", "sizes_Xe", "at_Xe", "come_Xe", "seat_Xe", "from_Xe", "total_e"],
    meta_fields=[],
)
@dataclass(frozen=True, kw_only=True)
class _Way:
    """Where rows go: those of each device and kind lie together here and there."""

    begin_Xe: jax.Array
    """First row here, and how many, that goes to device X."""
    sizes_Xe: jax.Array
    seat_Xe: jax.Array
    """First place there."""
    at_Xe: jax.Array
    """First place here, and how many, for rows that come from device X."""
    come_Xe: jax.Array
    from_Xe: jax.Array
    """First row there."""
    total_e: jax.Array

    @classmethod
    def of(cls, sizes_E: jax.Array) -> "_Way":
        sizes_Xe = sizes_E.reshape(place.devices("expert"), -1)
        begin_Xe = _before(sizes_E, 0).reshape(sizes_Xe.shape)
        come_Xe = _exchange(sizes_Xe)
        total_e = come_Xe.sum(0)
        at_Xe = _before(total_e, 0) + _before(come_Xe, 0)  # of each kind those of all devices, one after the other
        return cls(
            begin_Xe=begin_Xe,
            sizes_Xe=sizes_Xe,
            seat_Xe=_exchange(at_Xe),
            at_Xe=at_Xe,
            come_Xe=come_Xe,
            from_Xe=_exchange(begin_Xe),
            total_e=total_e,
        )

    def there(self, x_nD: jax.Array, places: int) -> jax.Array:
        return _ragged(x_nD, places, self.begin_Xe, self.sizes_Xe, self.seat_Xe, self.come_Xe)

    def back(self, y_mD: jax.Array, rows: int) -> jax.Array:
        return _ragged(y_mD, rows, self.at_Xe, self.come_Xe, self.from_Xe, self.sizes_Xe)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """Places in parts of so many: one is filled where all devices have about as much to do, all in the worst case."""

    size: int
    count: int

    @classmethod
    def of(cls, rows: int, most: int) -> "_Parts":
        places = place.devices("expert") * most
        unit = 512 if rows >= 4096 else 8  # a tile of a TPU's kernel
        size = min(-(-math.ceil(rows * SLACK) // unit) * unit, places)
        return cls(size=size, count=-(-places // size))

    @property
    def places(self) -> int:
        return self.size * self.count

    def filled(self, total_e: jax.Array) -> jax.Array:
        return -(-jnp.sum(total_e) // self.size)

    def part(self, c: jax.Array, total_e: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(kind_c, sizes_e) of part `c`."""
        first = c * self.size
        end_e = jnp.cumsum(total_e)
        low_e, high_e = (jnp.clip(x, first, first + self.size) for x in (end_e - total_e, end_e))
        row_c1 = first + jnp.arange(self.size)[:, None]
        return jnp.minimum(jnp.sum(row_c1 >= end_e, axis=1), len(total_e) - 1), high_e - low_e

    def cut(self, x_m: jax.Array, c: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x_m, c * self.size, self.size)

    def put(self, x_m, x_c, c: jax.Array):
        return jax.tree.map(lambda m, c_: jax.lax.dynamic_update_slice_in_dim(m, c_, c * self.size, 0), x_m, x_c)


def _places(rows: int, like_n: jax.Array, beside: jax.Array) -> jax.Array:
    """Rows of the width and kind of these, that nobody reads before they are written."""
    shape = (rows, *like_n.shape[1:])
    return place.like(jax.lax.empty(shape, like_n.dtype, out_sharding=jax.P(*(None,) * len(shape))), beside)


def _exchange(x_Xe: jax.Array) -> jax.Array:
    return jax.lax.all_to_all(x_Xe, place.mesh_axes("expert"), 0, 0, tiled=True)


def _before(x: jax.Array, axis: int) -> jax.Array:
    """The sum of what stands before."""
    return jnp.cumsum(x, axis) - x


def _ragged(x_nD: jax.Array, rows: int, begin_Xe, sizes_Xe, at_Xe, come_Xe) -> jax.Array:
    """[rows, D] of what all devices send here: `sizes` rows of `x` from `begin`, to the receiver's rows from `at`.

    `jax.lax.ragged_all_to_all` where the platform has it; XLA's CPU compiler does not, so there everybody reads all.
    """
    axes, out_mD = place.mesh_axes("expert"), _places(rows, x_nD, x_nD)
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
