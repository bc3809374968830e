"""From an OptimizerConfig and the names of the parameters to an optax transformation."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pretrain.errors import UserError
from pretrain.optimizer.config import Group, Muon, OptimizerConfig
from pretrain.optimizer.groups import assign, listed
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


def build(config: OptimizerConfig, names: Any, matrix_axes: Any, total_steps: int) -> optax.GradientTransformation:
    """The whole update: clipping, groups, directions, decoupled decay and rate, f32 in and out of any dtype.

    `names` and `matrix_axes` have the structure of the parameters, with a path and a `MatrixAxes` (or its tuple; None
    for what is not a matrix) at every leaf. `update` needs `params` and returns what `optax.apply_updates` adds; the
    state it returns says which gradient norm and learning rate it saw.

    Raises:
        UserError: A parameter without a group, a group without a parameter, Muon for what is not a matrix, or a
            schedule that does not fit into `total_steps`.
    """
    learning_rate(config, 0, total_steps)
    leaves = _leaves(config, names, matrix_axes)

    def init(params):
        slots = {leaf.name: leaf.rule.init(p) for leaf, p in zip(leaves, _flat(params, leaves)) if leaf.rule}
        return OptimizerState(jnp.int32(0), jnp.float32(0), jnp.float32(0), slots)

    def update(updates, state, params=None):
        grads = _flat(updates, leaves)
        norm = global_norm([g for leaf, g in zip(leaves, grads) if leaf.rule])
        clip = _clip_scale(norm, config.clip_norm)
        rate = learning_rate(config, state.step, total_steps)
        step = state.step + 1
        moves, slots = [], {}
        for leaf, grad, param in zip(leaves, grads, _flat(params, leaves)):
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


def _leaves(config: OptimizerConfig, names: Any, matrix_axes: Any) -> list[_Leaf]:
    flat, structure = jax.tree.flatten(names)
    if len(set(flat)) != len(flat):
        raise ValueError("two parameters have the same name")
    axes = [None if a is None else MatrixAxes(*a) for a in structure.flatten_up_to(matrix_axes)]
    groups = assign(config.groups, flat)
    kinds = [group.kind or config.kind for group in groups]
    vectors = [n for n, g, k, a in zip(flat, groups, kinds, axes) if isinstance(k, Muon) and a is None and not g.frozen]
    if vectors:
        raise UserError(
            f"{listed(vectors)} are no matrices, but their optimizer.groups give them to Muon; "
            "expected another kind, use MUON_GROUPS or a group with kind=AdamW()"
        )
    return [_Leaf(n, g, None if g.frozen else rule(k, a)) for n, g, k, a in zip(flat, groups, kinds, axes)]


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
