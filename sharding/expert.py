"""Rows of tokens to the devices that hold what works on them, and back: expert parallelism (Lepikhin et al. 2020).

Inside `place.local`, over the mesh axes of the logical axis `expert`. X = devices, n = rows of this device, c = places
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
"""Places of a part, over the rows that come to a device if all have as much to do."""
SELDOM = "seldom"
"""Scope of loops over further parts, which an even load never enters: `plan` counts no turn of them."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done with rows sorted by kind, each of which has a factor: `y_cD = out_of(weights, into(weights, x_cD,
    factor_c, kind_c, sizes_e), factor_c, kind_c, sizes_e)`. Rows after those that `sizes` counts may be anything: it
    reads none of them, forwards or backwards, and nobody reads what becomes of them. It speaks to no other device:
    they do it at other times, more or less often."""

    into: Callable[[Weights, jax.Array, jax.Array, jax.Array, jax.Array], Hidden]
    out_of: Callable[[Weights, Hidden, jax.Array, jax.Array, jax.Array], jax.Array]


def visit(
    work: Work, weights: Weights, x_n: jax.Array, factor_n: jax.Array, kind_n: jax.Array, kinds: int, most: int
) -> jax.Array:
    """y_n: row by row what `work` makes of them, on the device of their kind.

    Rows may be `in_tiles`; `work` sees them flat. `kind_n` is sorted. On a device kinds count from 0. Nothing is
    dropped: a device takes rows in parts, for each of which it has places, and the first part is all where devices
    have about as much to do. What `into` makes of the first part is kept for the backward pass. `most`: a bound of the
    rows that one device can send to another.
    """
    sizes_E = jnp.sum(kind_n[:, None] == jnp.arange(kinds), axis=0, dtype=jnp.int32)
    if place.devices("expert") == 1:
        hidden = named(work.into(weights, x_n, factor_n, kind_n, sizes_E))
        return work.out_of(weights, hidden, factor_n, kind_n, sizes_E)
    x_n = place.like(x_n, *jax.tree.leaves(weights))
    weights, factor_n = jax.tree.map(lambda w: place.like(w, x_n), (weights, factor_n))
    return _visit(work, _places_of_a_part(len(x_n), most), weights, x_n, factor_n, sizes_E)


def in_tiles(x_nD: jax.Array) -> jax.Array:
    """Rows as they travel: whole tiles of a TPU, where the width allows it. They go one by one, and one that fills two
    of eight lines takes three times as long to write."""
    n, D = x_nD.shape
    tiled = place.devices("expert") > 1 and place.platform() == "tpu" and D % 1024 == 0
    return x_nD.reshape(n, 8, D // 8) if tiled else x_nD


def _places_of_a_part(rows: int, most: int) -> int:
    unit = 512 if rows >= 4096 else 8  # a tile of a TPU's kernel
    return min(-(-math.ceil(rows * SLACK) // unit) * unit, place.devices("expert") * most)


def named(hidden: Hidden) -> Hidden:
    return {name: checkpoint_name(h, name) for name, h in hidden.items()}


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _visit(work: Work, places: int, weights: Weights, x_n, factor_n, sizes_E) -> jax.Array:
    return _forward(work, places, weights, x_n, factor_n, sizes_E)[0]


def _forward(work: Work, places: int, weights: Weights, x_n, factor_n, sizes_E):
    way = _Way.of(sizes_E)

    def of_part(c, y_n):
        part = way.part(c, places)
        x_cD, factor_c, hidden_c = _begun(work, weights, part, x_n, factor_n)
        return part.back(work.out_of(weights, hidden_c, factor_c, *part.what), y_n), (x_cD, factor_c, named(hidden_c))

    y_n, first = of_part(0, _empty(len(x_n), x_n))
    with jax.named_scope(SELDOM):
        y_n = jax.lax.fori_loop(1, way.parts(places), lambda c, y_n: of_part(c, y_n)[0], y_n)
    return y_n, (weights, x_n, factor_n, way, first)


def _begun(work: Work, weights: Weights, part: "_Part", x_n, factor_n) -> tuple[jax.Array, jax.Array, Hidden]:
    """(x_cD, factor_c, hidden) of what comes."""
    x_cD, factor_c = _flat(part.there(x_n)), part.there(factor_n)
    return x_cD, factor_c, work.into(weights, x_cD, factor_c, *part.what)


def _backward(work: Work, places: int, residuals, dy_n: jax.Array):
    weights, x_n, factor_n, way, first = residuals

    def of_part(part, x_cD, factor_c, hidden_c, dx_n, dfactor_n):
        _, pull = jax.vjp(lambda w, h, f: work.out_of(w, h, f, *part.what), weights, hidden_c, factor_c)
        dw, dhidden_c, dfactor_c = pull(_flat(part.there(dy_n)))
        _, pull = jax.vjp(lambda w, x, f: work.into(w, x, f, *part.what), weights, x_cD, factor_c)
        more_dw, dx_cD, more_dfactor_c = pull(dhidden_c)
        dw = jax.tree.map(jnp.add, dw, more_dw)
        return dw, part.back(dx_cD, dx_n), part.back(dfactor_c + more_dfactor_c, dfactor_n)

    def another(c, gradients):
        part = way.part(c, places)
        dw, *of_rows = of_part(part, *_begun(work, weights, part, x_n, factor_n), *gradients[1:])
        return jax.tree.map(jnp.add, gradients[0], dw), *of_rows

    gradients = of_part(way.part(0, places), *first, *(_empty(len(dy_n), x) for x in (dy_n, factor_n)))
    with jax.named_scope(SELDOM):
        gradients = jax.lax.fori_loop(1, way.parts(places), another, gradients)
    return *gradients, None


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

    def parts(self, places: int) -> jax.Array:
        """Of the device to which most come: all of these devices exchange as often."""
        return jax.lax.pmax(-(-jnp.sum(self.total_e) // places), place.mesh_axes("expert"))

    def part(self, c: int | jax.Array, places: int) -> "_Part":
        """What fills places from `c * places` on."""
        low, end_e = c * places, jnp.cumsum(self.total_e)

        def cut(first, sizes):
            """(rows before it, rows of it, its first place)."""
            before, end = (jnp.clip(x - first, 0, sizes) for x in (low, low + places))
            return before, end - before, jnp.clip(first - low, 0, places)

        gone_Xe, sizes_Xe, seat_Xe = cut(self.seat_Xe, self.sizes_Xe)
        done_Xe, come_Xe, at_Xe = cut(self.at_Xe, self.come_Xe)
        kind_c = jnp.sum(low + jnp.arange(places)[:, None] >= end_e, axis=1)
        return _Part(
            places=places,
            home_Xe=(self.begin_Xe + gone_Xe, sizes_Xe, seat_Xe),
            here_Xe=(at_Xe, come_Xe, self.from_Xe + done_Xe),
            what=(jnp.minimum(kind_c, len(end_e) - 1), cut(end_e - self.total_e, self.total_e)[1]),
        )


@dataclass(frozen=True, kw_only=True)
class _Part:
    places: int
    home_Xe: tuple[jax.Array, jax.Array, jax.Array]
    """Of the rows that go to device X: the first one here, how many, their first place there."""
    here_Xe: tuple[jax.Array, jax.Array, jax.Array]
    """Of those that come from device X: the first place here, how many, the first row there."""
    what: tuple[jax.Array, jax.Array]
    """kind_c, sizes_e."""

    def there(self, x_n: jax.Array) -> jax.Array:
        return _moved(x_n, _empty(self.places, x_n), self.home_Xe, self.here_Xe)

    def back(self, y_c: jax.Array, y_n: jax.Array) -> jax.Array:
        return _moved(y_c.reshape(-1, *y_n.shape[1:]), y_n, self.here_Xe, self.home_Xe)


def _flat(x_c: jax.Array) -> jax.Array:
    return x_c.reshape(len(x_c), -1)


def _empty(rows: int, like_n: jax.Array) -> jax.Array:
    """Rows of the width and kind of these, that nobody reads before they are written."""
    shape = (rows, *like_n.shape[1:])
    return place.like(jax.lax.empty(shape, like_n.dtype, out_sharding=jax.P(*(None,) * len(shape))), like_n)


def _exchange(x_Xe: jax.Array) -> jax.Array:
    return jax.lax.all_to_all(x_Xe, place.mesh_axes("expert"), 0, 0, tiled=True)


def _before(x: jax.Array, axis: int) -> jax.Array:
    """The sum of what stands before."""
    return jnp.cumsum(x, axis) - x


def _moved(x_n: jax.Array, out_m: jax.Array, sent_Xe, taken_Xe) -> jax.Array:
    """`out` with what all devices send here.

    Rows by `jax.lax.ragged_all_to_all` where the platform has it; XLA's CPU compiler does not. There, and of single
    numbers, everybody reads all.
    """
    axes, kinds = place.mesh_axes("expert"), sent_Xe[0].shape[1]
    if place.platform() != "cpu" and x_n.ndim > 1:
        return jax.lax.ragged_all_to_all(x_n, out_m, *(s.reshape(-1) for s in (*sent_Xe, taken_Xe[1])), axis_name=axes)
    x_Xn = jax.lax.all_gather(x_n, axes)
    first_c, come_c, from_c = (s.reshape(-1) for s in taken_Xe)
    row_m = jnp.arange(len(out_m))
    in_mc = (row_m[:, None] >= first_c) & (row_m[:, None] < first_c + come_c)
    c_m = jnp.argmax(in_mc, axis=1)
    x_m = x_Xn[c_m // kinds, from_c[c_m] + row_m - first_c[c_m]]
    there_m = jnp.any(in_mc, axis=1).reshape(-1, *(1,) * (x_m.ndim - 1))
    return jnp.where(there_m, x_m, out_m)


def scatter(x_BE: jax.Array) -> jax.Array:
    """[B, E, ...] -> [X * B, E / X, ...]: the rows of all devices, of the kinds of this one."""
    axes = place.mesh_axes("expert")
    return jax.lax.all_to_all(x_BE, axes, 1, 0, tiled=True) if axes else x_BE


def collect(y_BE: jax.Array) -> jax.Array:
    """The inverse of `scatter`."""
    axes = place.mesh_axes("expert")
    return jax.lax.all_to_all(y_BE, axes, 0, 1, tiled=True) if axes else y_BE
