"""From an OptimizerConfig and the names of the parameters to an optax transformation."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pretrain.optimizer.config import Group, Muon, OptimizerConfig
from pretrain.optimizer.groups import assign
from pretrain.optimizer.muon import MatrixAxes
from pretrain.optimizer.rules import Rule, Slots, rule
from pretrain.optimizer.schedules import learning_rate


class OptimizerState(NamedTuple):
    step: jax.Array
    """int32, finished updates."""
    grad_norm: jax.Array
    """f32, of the last update's gradients before clipping, without frozen parameters."""
    learning_rate: jax.Array
    """f32, of the last update."""
    slots: dict[str, Slots]
    """By the parameter's name. A moment is sharded as its parameter; frozen parameters have no entry."""


class _Leaf(NamedTuple):
    name: str
    group: Group
    rule: Rule | None
    """None: frozen."""
    sign_rate: float | None


def build(
    config: OptimizerConfig, names: Any, matrix_axes: Any, total_steps: int, sign_rates: Any = None
) -> optax.GradientTransformation:
    """The whole update: clipping, groups, directions, decoupled decay and rate, f32 in and out of any dtype.

    `names` and `matrix_axes` have the structure of the parameters, with a path and a `MatrixAxes` (or its tuple; None
    for what is not a matrix) at every leaf. `update` needs `params` and returns what `optax.apply_updates` adds; the
    state it returns says which gradient norm and learning rate it saw. `sign_rates`: of parameters that move by so much
    against the sign of their gradient, whatever the config says (a router's balancing bias); None at all others. It
    also takes `lr_scale`, a factor of this update's learning rate.

    Raises:
        UserError: A parameter without a group, a group without a parameter, or a schedule that does not fit into
            `total_steps`.
    """
    learning_rate(config, 0, total_steps)
    leaves = _leaves(config, names, matrix_axes, sign_rates)

    def init(params):
        slots = {leaf.name: leaf.rule.init(p) for leaf, p in zip(leaves, _flat(params, leaves)) if leaf.rule}
        return OptimizerState(jnp.int32(0), jnp.float32(0), jnp.float32(0), slots)

    def update(updates, state, params=None, lr_scale=None):
        grads = _flat(updates, leaves)
        norm = global_norm([g for leaf, g in zip(leaves, grads) if leaf.rule])
        clip = _clip_scale(norm, config.clip_norm)
        rate = learning_rate(config, state.step, total_steps)
        rate = rate if lr_scale is None else rate * lr_scale
        step = state.step + 1
        moves, slots = [], {}
        for leaf, grad, param in zip(leaves, grads, _flat(params, leaves)):
            if leaf.sign_rate is not None:
                moves.append((-leaf.sign_rate * jnp.sign(grad)).astype(param.dtype))
                continue
            if not leaf.rule:
                moves.append(jnp.zeros_like(param))
                continue
            direction, slots[leaf.name] = leaf.rule.update(
                grad.astype(jnp.float32) * clip, state.slots[leaf.name], param, step
            )
            decay = config.weight_decay if leaf.group.weight_decay is None else leaf.group.weight_decay
            if decay:
                direction = direction + decay * param.astype(jnp.float32)
            moves.append(-rate * leaf.group.lr_scale * direction)
        return jax.tree.unflatten(jax.tree.structure(params), moves), OptimizerState(step, norm, rate, slots)

    return optax.GradientTransformation(init, update)


def _leaves(config: OptimizerConfig, names: Any, matrix_axes: Any, sign_rates: Any) -> list[_Leaf]:
    flat, structure = jax.tree.flatten(names)
    if len(set(flat)) != len(flat):
        raise ValueError("two parameters have the same name")
    axes = [None if a is None else MatrixAxes(*a) for a in structure.flatten_up_to(matrix_axes)]
    rates = [None] * len(flat) if sign_rates is None else structure.flatten_up_to(sign_rates)
    groups = iter(assign(config.groups, [name for name, rate in zip(flat, rates) if rate is None]))
    leaves = []
    for name, a, rate in zip(flat, axes, rates):
        group = Group(pattern="", frozen=True) if rate is not None else next(groups)
        kind = group.kind or config.kind
        if isinstance(kind, Muon) and (a is None or re.search(kind.tables, name)):
            kind = kind.rest
        leaves.append(_Leaf(name, group, None if group.frozen else rule(kind, a, name), rate))
    return leaves


def _flat(tree: Any, leaves: list[_Leaf]) -> list[jax.Array]:
    flat = jax.tree.leaves(tree)
    if len(flat) != len(leaves):
        raise ValueError(f"found {len(flat)} arrays, expected one for each of the {len(leaves)} names")
    return flat


def global_norm(arrays: Iterable[jax.Array]) -> jax.Array:
    """The f32 Euclidean norm of all arrays together."""
    return jnp.sqrt(sum((jnp.sum(jnp.square(x.astype(jnp.float32))) for x in arrays), jnp.float32(0)))


def clip_by_global_norm(grads: Any, max_norm: float | None) -> tuple[Any, jax.Array]:
    """The gradients scaled down to `max_norm` where longer, and their norm before that. `build` does this itself."""
    norm = global_norm(jax.tree.leaves(grads))
    scale = _clip_scale(norm, max_norm)
    return jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads), norm


def _clip_scale(norm: jax.Array, max_norm: float | None) -> jax.Array | float:
    """Exactly 1 for a short gradient, NaN for a NaN norm."""
    return 1.0 if max_norm is None else max_norm / jnp.maximum(norm, max_norm)
