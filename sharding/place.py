"""Moves arrays to where the rules want them. The only file that spells a `PartitionSpec`.

Everything here is the identity outside `use(mesh, rules)` and on one device, so a model runs without a mesh too.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pretrain.sharding.axes import Axis
from pretrain.sharding.columns import Columns
from pretrain.sharding.rules import AxisRules, Table, assign

Axes = tuple[Axis | None, ...]
NOWHERE = AxisRules()
_rules: ContextVar[AxisRules] = ContextVar("rules", default=NOWHERE)
_platform: ContextVar[str | None] = ContextVar("platform", default=None)


@contextmanager
def use(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, rules: AxisRules) -> Iterator[None]:
    """Functions traced inside are laid out by these rules over this mesh; over an abstract one for shapes alone."""
    real = isinstance(mesh, jax.sharding.Mesh)
    token, platform = _rules.set(rules), _platform.set(mesh.devices.flat[0].platform if real else None)
    try:
        with jax.set_mesh(mesh) if real else jax.sharding.use_abstract_mesh(mesh):
            yield
    finally:
        _rules.reset(token)
        _platform.reset(platform)


def platform() -> str:
    """cpu, gpu or tpu: that of the mesh in use, whose devices need not exist here, else that of this process."""
    return _platform.get() or jax.default_backend()


def _sizes() -> dict[str, int]:
    return dict(jax.sharding.get_abstract_mesh().shape)


def _trivial() -> bool:
    return all(size == 1 for size in _sizes().values())


def _spec(axes: Axes, table: Table) -> P:
    return P(*(m or None for m in assign(axes, table, _sizes())))


def whole() -> bool:
    """Whether every array is whole on one device."""
    return _trivial()


def spec(*axes: Axis | None) -> P:
    """The layout of an activation with these logical axes."""
    return _spec(axes, _rules.get().used)


def stored_spec(axes: Axes) -> P | None:
    """The layout at rest of a parameter with these logical axes; None where there is nothing to lay out."""
    return None if _trivial() else _spec(axes, _rules.get().stored)


def stored(axes: Axes, mesh: jax.sharding.Mesh) -> NamedSharding:
    """The same as a sharding of concrete arrays."""
    return NamedSharding(mesh, _spec(axes, _rules.get().stored))


def constrain(x: jax.Array, *axes: Axis | None) -> jax.Array:
    """`x` laid out as an activation with these logical axes."""
    return x if _trivial() else jax.sharding.reshard(x, spec(*axes))


def gather(w: jax.Array, axes: Axes, dtype: jnp.dtype) -> jax.Array:
    """A stored parameter as it is used: cast first, so that the wire carries the compute type."""
    w = w.astype(dtype)
    return w if _trivial() else jax.sharding.reshard(w, _spec(axes, _rules.get().used))


def project(
    x: jax.Array, w: jax.Array | Columns, *axes: Axis | None, contract: int = 1, dtype: jnp.dtype | None = None
) -> jax.Array:
    """`x[..., IN] @ w[IN, ...]` over the last/first `contract` dimensions; the result has the given logical axes."""
    if isinstance(w, Columns):
        y = w.product(x.reshape(-1, math.prod(w.shape[:contract])), dtype or x.dtype)
        return y.reshape(*x.shape[: x.ndim - contract], *w.shape[contract:])
    if _trivial():
        return _project_flat(x, w, contract, dtype)
    left, right = tuple(range(x.ndim - contract, x.ndim)), tuple(range(contract))
    return jax.lax.dot_general(
        x, w, ((left, right), ((), ())), preferred_element_type=dtype or x.dtype, out_sharding=spec(*axes)
    )


def _project_flat(x: jax.Array, w: jax.Array, contract: int, dtype: jnp.dtype | None) -> jax.Array:
    """The same as one plain matrix product: XLA's CPU compiler transposes the gradient of anything wider."""
    lead, out = x.shape[: x.ndim - contract], w.shape[contract:]
    inner = math.prod(w.shape[:contract])
    y = jnp.matmul(x.reshape(-1, inner), w.reshape(inner, -1), preferred_element_type=dtype or x.dtype)
    return y.reshape(*lead, *out)


def take(table: jax.Array, ids: jax.Array, *axes: Axis | None) -> jax.Array:
    """`table[ids]` with the given logical axes; ids outside the table give NaN rather than a neighbour's row."""
    if _trivial():
        return table.at[ids].get(mode="fill", fill_value=jnp.nan)
    return table.at[ids].get(mode="fill", fill_value=jnp.nan, out_sharding=spec(*axes))


def local(function: Callable, in_axes: tuple[Axes | None, ...], out_axes: Axes | tuple[Axes, ...]) -> Callable:
    """`function` run by each device on its own shard of arguments with these logical axes (None: whole everywhere)."""
    if _trivial():
        return function
    several = any(isinstance(a, tuple) for a in out_axes)
    out_specs = tuple(spec(*a) for a in out_axes) if several else spec(*out_axes)  # type: ignore
    in_specs = tuple(spec(*a) if a else P() for a in in_axes)
    told = platform() != "tpu"  # a Pallas kernel does not say over which mesh axes its results vary
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=told)


def sum_over(x: jax.Array, axis: Axis) -> jax.Array:
    """Inside `local`: the sum of what the devices have that each hold a part of this logical axis."""
    axes = _held(axis)
    return jax.lax.psum(x, axes) if axes else x


def devices(axis: Axis) -> int:
    """How many devices share this logical axis."""
    return math.prod(_sizes()[m] for m in _held(axis))


def _held(axis: Axis) -> tuple[str, ...]:
    return () if _trivial() else tuple(assign((axis,), _rules.get().used, _sizes())[0])


def deal(x: jax.Array, hands: int) -> jax.Array:
    """[batch, ...] -> [hands, batch / hands, ...]: row r goes to hand r mod `hands`, so each device keeps its rows."""
    rest = (None,) * (x.ndim - 1)
    shape = (x.shape[0] // hands, hands, *x.shape[1:])
    x = x.reshape(shape) if _trivial() else jax.lax.reshape(x, shape, out_sharding=spec("batch", None, *rest))
    return jax.numpy.swapaxes(x, 0, 1)
