"""The one step function: gradients of any objective, summed over micro-batches, one update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pretrain.objectives.batch import Batch, Loss, Objective, tokens_read
from pretrain.sharding import place
from pretrain.state import TrainState

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(objective: Objective, optimizer: optax.GradientTransformation, accumulate: int) -> Step:
    """A pure function to be jitted with the state donated. A step that is not finite leaves the state as it was."""

    update: Any = optimizer.update  # optax's types know trees of arrays, not modules
    apply: Any = optax.apply_updates

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        grads, loss = gradients(objective, state.model, batch, key, accumulate)
        grads = jax.tree.map(lambda g: g / jnp.maximum(loss.weight, 1), grads)
        updates, opt_state = update(grads, state.optimizer, state.model)
        model = apply(state.model, updates)
        mean = loss.total / jnp.maximum(loss.weight, 1)
        finite = jnp.isfinite(mean) & jnp.isfinite(opt_state.grad_norm)
        new = TrainState(step=state.step + 1, model=model, optimizer=opt_state, key=state.key)
        metrics = {
            "loss": mean,
            "weight": loss.weight,
            "tokens": tokens_read(batch.inputs),
            "grad_norm": opt_state.grad_norm,
            "learning_rate": opt_state.learning_rate,
            **{name: value / jnp.maximum(loss.weight, 1) for name, value in loss.metrics.items()},
        }
        return jax.tree.map(lambda a, b: _select(finite, a, b), new, state), metrics

    return step


def _select(finite: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    if jnp.issubdtype(new.dtype, jax.dtypes.prng_key):
        return old  # the root key never changes
    return jnp.where(finite, new, old)


def gradients(objective: Objective, model, batch: Batch, key: jax.Array, accumulate: int):
    """(sum of gradients, Loss) over all micro-batches, whose number changes nothing but rounding and memory."""

    def total(model, batch: Batch, key: jax.Array) -> tuple[jax.Array, Loss]:
        loss = objective(model, batch, key)
        return loss.total, loss

    grad = jax.grad(total, has_aux=True)
    if accumulate == 1:
        return grad(model, batch, key)

    def add(carry, item):
        micro, n = item
        return jax.tree.map(jnp.add, carry, grad(model, micro, jax.random.fold_in(key, n))), None

    micros = jax.tree.map(lambda x: place.deal(x, accumulate), batch)
    keys = jnp.arange(accumulate)
    first = grad(model, jax.tree.map(lambda x: x[0], micros), jax.random.fold_in(key, 0))
    rest = jax.tree.map(lambda x: x[1:], (micros, keys))
    return jax.lax.scan(add, first, rest)[0]
