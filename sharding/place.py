"""Moves arrays to where the rules want them. The only file that spells a `PartitionSpec`.

Everything here is the identity outside `use(mesh, rules)` and on one device, so a model runs without a mesh too.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pretrain.sharding import quantised
from pretrain.sharding.axes import Axis
from pretrain.sharding.columns import Columns
from pretrain.sharding.mesh import Schedule
from pretrain.sharding.rules import AxisRules, Table, assign

Axes = tuple[Axis | None, ...]
NOWHERE = AxisRules()
EVENLY = ("length", "sequence", "latent")
"""Stay whole where their mesh axes do not divide them."""
AT_ONCE = Schedule()
_rules: ContextVar[AxisRules] = ContextVar("rules", default=NOWHERE)
_platform: ContextVar[str | None] = ContextVar("platform", default=None)
_stage: ContextVar[str | None] = ContextVar("stage", default=None)
"""The mesh axis of the stages, inside one of them."""
_schedule: ContextVar[Schedule] = ContextVar("schedule", default=AT_ONCE)


@contextmanager
def use(
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, rules: AxisRules, schedule: Schedule | None = None
) -> Iterator[None]:
    """Functions traced inside are laid out by these rules over this mesh; over an abstract one for shapes alone."""
    real = isinstance(mesh, jax.sharding.Mesh)
    token, platform = _rules.set(rules), _platform.set(mesh.devices.flat[0].platform if real else None)
    order = _schedule.set(schedule or AT_ONCE)
    try:
        with jax.set_mesh(mesh) if real else jax.sharding.use_abstract_mesh(mesh):
            yield
    finally:
        _rules.reset(token)
        _platform.reset(platform)
        _schedule.reset(order)


def schedule() -> Schedule:
    """What devices that work together do when."""
    return _schedule.get()


def platform() -> str:
    """cpu, gpu or tpu: that of the mesh in use, whose devices need not exist here, else that of this process."""
    return _platform.get() or jax.default_backend()


def _sizes() -> dict[str, int]:
    return dict(jax.sharding.get_abstract_mesh().shape)


def _trivial() -> bool:
    return all(size == 1 for size in _sizes().values())


def _spec(axes: Axes, table: Table, shape: tuple[int, ...] = ()) -> P:
    """Tokens that their mesh axes do not divide stay whole: those asked for in a row, or the one that stands for it.
    So do low ranks."""
    sizes, out = _sizes(), []
    for i, (axis, mesh_axes) in enumerate(zip(axes, assign(axes, table, sizes))):
        uneven = i < len(shape) and axis in EVENLY and shape[i] % math.prod(sizes[m] for m in mesh_axes)
        out.append(None if uneven else mesh_axes or None)
    return P(*out)


def whole() -> bool:
    """Whether every array is whole on one device."""
    return _trivial()


def spec(*axes: Axis | None) -> P:
    """The layout of an activation with these logical axes."""
    return _spec(axes, _rules.get().used)


def stored_spec(shape: tuple[int, ...], axes: Axes) -> P | None:
    """The layout at rest of a parameter with these logical axes; None where there is nothing to lay out."""
    return None if _trivial() else _spec(axes, _rules.get().stored, shape)


def stored(shape: tuple[int, ...], axes: Axes, mesh: jax.sharding.Mesh) -> NamedSharding:
    """The same as a sharding of concrete arrays."""
    return NamedSharding(mesh, _spec(axes, _rules.get().stored, shape))


def spec_of(shape: tuple[int, ...], *axes: Axis | None) -> P:
    """The same for an array of this shape: tokens stay whole where they cannot be cut evenly."""
    return _spec(axes, _rules.get().used, shape)


def constrain(x: jax.Array, *axes: Axis | None) -> jax.Array:
    """`x` laid out as an activation with these logical axes."""
    return x if _trivial() else jax.sharding.reshard(x, spec_of(x.shape, *axes))


def gather(w: jax.Array, axes: Axes, dtype: jnp.dtype) -> jax.Array:
    """A stored parameter as it is used: cast first, so that the wire carries the compute type."""
    w = w.astype(dtype)
    return w if _trivial() else jax.sharding.reshard(w, _spec(axes, _rules.get().used))


def fetch(tree):
    """What lies in the host's memory, on the device."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device) if _on_host(x) else x, tree)


def stow(tree, like):
    """Each array in the memory in which the one of `like` lies."""
    return jax.tree.map(lambda x, old: jax.device_put(x, jax.memory.Space.Host) if _on_host(old) else x, tree, like)


def _on_host(x: jax.Array) -> bool:
    return jax.typeof(x).memory_space == jax.memory.Space.Host


def project(
    x: jax.Array, w: jax.Array | Columns, *axes: Axis | None, contract: int = 1, dtype: jnp.dtype | None = None
) -> jax.Array:
    """`x[..., IN] @ w[IN, ...]` over the last/first `contract` dimensions; the result has the given logical axes.

    `dtype`: of the result, where it has to be exact: such products are never in 8 bits.
    """
    if isinstance(w, Columns):
        y = w.product(x.reshape(-1, math.prod(w.shape[:contract])), dtype or x.dtype)
        return y.reshape(*x.shape[: x.ndim - contract], *w.shape[contract:])
    out = None if _trivial() else spec_of((*x.shape[: x.ndim - contract], *w.shape[contract:]), *axes)
    narrow = quantised.arithmetic()
    if narrow is not None and dtype is None:
        return quantised.product(x, w, contract, narrow, out)
    if out is None:
        return _project_flat(x, w, contract, dtype)
    left, right = tuple(range(x.ndim - contract, x.ndim)), tuple(range(contract))
    return jax.lax.dot_general(
        x, w, ((left, right), ((), ())), preferred_element_type=dtype or x.dtype, out_sharding=out
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
    ids = constrain(ids, *axes[: ids.ndim])
    out = spec_of((*ids.shape, *table.shape[1:]), *axes)
    return table.at[ids].get(mode="fill", fill_value=jnp.nan, out_sharding=out)


@dataclass(frozen=True)
class AtRest:
    """Of an argument of `local` that comes as a parameter is stored: every device collects of it what it uses. Its
    gradient is then summed and cut in one, where that of an argument which comes whole is summed whole."""

    stored: Axes
    used: Axes

    def lies(self, cut: set[str]) -> tuple[tuple[str, ...], ...]:
        """Mesh axes of each dimension: those along which it is used, then those over which it is collected, where the
        results are `cut` along these and no other dimension is."""
        stored, used = assign(self.stored, _rules.get().stored, _sizes()), self.uses
        lies = tuple(s if s[: len(u)] == u and cut.issuperset(s[len(u) :]) else u for s, u in zip(stored, used))
        flat = [m for dimension in lies for m in dimension]
        return lies if len(set(flat)) == len(flat) else used

    @property
    def uses(self) -> tuple[tuple[str, ...], ...]:
        return assign(self.used, _rules.get().used, _sizes())

    def collect(self, w: jax.Array, cut: set[str]) -> jax.Array:
        for i, (lies, used) in enumerate(zip(self.lies(cut), self.uses)):
            if over := lies[len(used) :]:
                w = jax.lax.all_gather(w, over, axis=i, tiled=True)
        return w


def local(function: Callable, in_axes: tuple[Axes | AtRest | None, ...], out_axes: Axes | tuple[Axes, ...]) -> Callable:
    """`function` run by each device on its own shard of arguments with these logical axes (None: whole everywhere)."""
    if _trivial():
        return function
    several = any(isinstance(a, tuple) for a in out_axes)
    out_specs = tuple(spec(*a) for a in out_axes) if several else spec(*out_axes)  # type: ignore
    cut = set(jax.tree.leaves([tuple(s) for s in (out_specs if several else (out_specs,))]))
    in_specs = tuple(
        P(*(m or None for m in a.lies(cut))) if isinstance(a, AtRest) else spec(*(a or ())) for a in in_axes
    )
    told = platform() != "tpu"  # a Pallas kernel does not say over which mesh axes its results vary

    def own(*arguments):
        return function(*(a.collect(x, cut) if isinstance(a, AtRest) else x for x, a in zip(arguments, in_axes)))

    mapped = jax.shard_map(own, in_specs=in_specs, out_specs=out_specs, check_vma=told)
    if (stage := _stage.get()) is not None:
        mapped = _on_each_stage(mapped, own, in_specs, out_specs, stage, told)

    def laid(x, axes, layout):
        if isinstance(axes, AtRest):
            return jax.sharding.reshard(x, layout)
        return jax.tree.map(lambda x: constrain(x, *(axes or ())), x)

    return lambda *arguments: mapped(*(laid(*given) for given in zip(arguments, in_axes, in_specs)))


def _on_each_stage(
    mapped: Callable, function: Callable, in_specs: tuple, out_specs, stage: str, told: bool
) -> Callable:
    """`mapped` where `vmap` stands for the stages of a pipeline: each device works for its own alone, so that what JAX
    cannot map works there too."""
    several = isinstance(out_specs, tuple) and not isinstance(out_specs, P)
    placed = tuple(P(stage, *spec) for spec in out_specs) if several else P(stage, *out_specs)

    def rule(axis_size: int, batched: list, *arguments):
        many = [any(jax.tree.leaves(b)) for b in batched]
        specs = tuple(P(stage, *spec) if m else spec for m, spec in zip(many, in_specs))

        def one(*arguments):
            own = (jax.tree.map(lambda x: x[0], a) if m else a for m, a in zip(many, arguments))
            return jax.tree.map(lambda y: y[None], function(*own))

        out = jax.shard_map(one, in_specs=specs, out_specs=placed, check_vma=told)(*arguments)
        return out, jax.tree.map(lambda _: True, out)

    mapped = jax.custom_batching.custom_vmap(mapped)
    mapped.def_vmap(rule)
    return mapped


def sum_over(x: jax.Array, axis: Axis) -> jax.Array:
    """Inside `local`: the sum of what the devices have that each hold a part of this logical axis."""
    axes = _held(axis)
    return jax.lax.psum(x, axes) if axes else x


def like(y: jax.Array, *xs: jax.Array) -> jax.Array:
    """Inside `local`: `y` as a value that may differ between the devices as these do."""
    missing = frozenset().union(*(jax.typeof(x).mat.varying for x in xs)) - jax.typeof(y).mat.varying
    return jax.lax.pcast(y, tuple(missing), to="varying") if missing else y


def mesh_axes(axis: Axis) -> tuple[str, ...]:
    """Along which this logical axis is cut, outermost first; inside `local`, names for collectives."""
    return _held(axis)


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


def stages() -> int:
    """How many devices share the layers of a scanned stack."""
    return math.prod(_sizes()[m] for m in _stage_axes())


def stage_axis() -> str:
    """The mesh axis along which they stand."""
    (axis,) = _stage_axes()
    return axis


def _stage_axes() -> tuple[str, ...]:
    return () if _trivial() else tuple(assign(("layers",), _rules.get().stored, _sizes())[0])


@contextmanager
def within_stage() -> Iterator[None]:
    """What is traced inside is one stage's: its rows are no longer cut over stages."""
    rules, axes = _rules.get(), _stage_axes()
    used = {axis: tuple(m for m in to if m not in axes) for axis, to in rules.used.items()}
    token, within = _rules.set(replace(rules, used=used)), _stage.set(stage_axis())
    try:
        yield
    finally:
        _rules.reset(token)
        _stage.reset(within)


def hand_out(x: jax.Array, stages: int, hands: int) -> jax.Array:
    """[batch, ...] -> [stages, hands, batch / (stages x hands), ...]: each device keeps its rows."""
    before, after, rest, _ = _around_stage(x)
    outer = math.prod(_sizes()[m] for m in before)
    rows = x.shape[0] // (outer * stages * hands)
    tail, axis = x.shape[1:], stage_axis()
    x = _reshaped(x, (outer, stages, rows, hands, *tail), P(before or None, axis, after or None, None, *rest))
    x = jnp.moveaxis(x, (1, 3), (0, 1))
    return _reshaped(x, (stages, hands, outer * rows, *tail), P(axis, None, (*before, *after) or None, *rest))


def take_back(x: jax.Array, like: jax.Array) -> jax.Array:
    """The inverse of `hand_out`, laid out as what was handed out."""
    before, after, rest, whole = _around_stage(like)
    outer, axis = math.prod(_sizes()[m] for m in before), stage_axis()
    stages, hands, rows = x.shape[:3]
    shape = (stages, hands, outer, rows // outer, *x.shape[3:])
    x = _reshaped(x, shape, P(axis, None, before or None, after or None, *rest))
    x = jnp.moveaxis(x, (0, 1), (1, 3))
    return _reshaped(x, like.shape, whole)


def _around_stage(x: jax.Array) -> tuple[tuple[str, ...], tuple[str, ...], tuple, P]:
    """(mesh axes of the batch outside the stages, those inside, what the other dimensions have, all)."""
    batch, spec = _held("batch"), jax.typeof(x).sharding.spec
    at = batch.index(stage_axis())
    rest = tuple(spec[1:])
    return batch[:at], batch[at + 1 :], rest, P(batch, *rest)


def _reshaped(x: jax.Array, shape: tuple[int, ...], layout: P) -> jax.Array:
    return jax.lax.reshape(x, shape, out_sharding=layout)


def staged(x: jax.Array) -> jax.Array:
    """[layers, ...] or [stages, ...], each stage holding its part."""
    return jax.sharding.reshard(x, P(stage_axis(), *(None,) * (x.ndim - 1)))


def replicated(x: jax.Array) -> jax.Array:
    return jax.sharding.reshard(x, P(*(None,) * x.ndim))


def deal_tokens(x: jax.Array, hands: int) -> jax.Array:
    """[batch, length, ...] -> [hands, batch, length / hands, ...]: token t goes to hand t mod `hands`."""
    x = constrain(x, "batch", "length", *(None,) * (x.ndim - 2))
    shape = (x.shape[0], x.shape[1] // hands, hands, *x.shape[2:])
    x = jax.lax.reshape(x, shape, out_sharding=spec("batch", "length", *(None,) * (x.ndim - 1)))
    return jnp.moveaxis(x, 2, 0)


def gather_tokens(x: jax.Array) -> jax.Array:
    """The inverse of `deal_tokens`."""
    x = jnp.moveaxis(x, 0, 2)
    shape = (x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])
    return jax.lax.reshape(x, shape, out_sharding=spec("batch", "length", *(None,) * (len(shape) - 2)))
