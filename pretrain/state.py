"""Everything a step changes, and where it lies."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding

from pretrain.config import RunConfig
from pretrain.health.window import Window, empty
from pretrain.models import tree
from pretrain.models.transformer import Transformer
from pretrain.optimizer.build import build

HOST = "pinned_host"
"""JAX's name for the memory of a device's host."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    step: jax.Array
    """int32, finished updates."""
    model: Transformer
    optimizer: Any
    key: jax.Array
    """Root of all randomness in steps; folded with the step."""
    health: Window | None = None
    """What was usual so far; None: nothing is judged."""


def make_optimizer(config: RunConfig, dtype: jnp.dtype) -> optax.GradientTransformation:
    model = tree.abstract(config.model, dtype)
    return build(config.optimizer, tree.names(model), tree.matrix_axes(model), config.steps, tree.sign_rates(model))


def initialise(config: RunConfig, optimizer: optax.GradientTransformation, dtype: jnp.dtype) -> TrainState:
    """The state before the first step; trace it under `place.use`, and every leaf has its layout."""
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    model = Transformer(config.model, rngs=nnx.Rngs(init_key), dtype=dtype)
    init: Any = optimizer.init  # optax's types know trees of arrays, not modules
    window = empty(config.health.window)
    return TrainState(step=jnp.int32(0), model=model, optimizer=init(model), key=step_key, health=window)


def abstract(config: RunConfig, optimizer: optax.GradientTransformation, dtype: jnp.dtype, mesh) -> TrainState:
    """Shapes, types and layouts without numbers: what a checkpoint is restored into and a plan compiled from."""
    shapes = jax.eval_shape(lambda: initialise(config, optimizer, dtype))

    def laid(memory: str | None):
        def of(s):
            sharding = NamedSharding(mesh, s.sharding.spec if s.sharding else jax.P(), memory_kind=memory)
            return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding)

        return of

    state = jax.tree.map(laid(None), shapes)
    if not config.optimizer.offload:
        return state
    slots = jax.tree.map(laid(HOST), shapes.optimizer.slots)
    return replace(state, optimizer=state.optimizer._replace(slots=slots))


def create(config: RunConfig, optimizer: optax.GradientTransformation, dtype: jnp.dtype, mesh) -> TrainState:
    """A fresh state, every device making its own part."""
    shardings = jax.tree.map(lambda s: s.sharding, abstract(config, optimizer, dtype, mesh))
    return jax.jit(lambda: initialise(config, optimizer, dtype), out_shardings=shardings)()
