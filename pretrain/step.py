"""The one step function: gradients of any objective, summed over micro-batches, one update."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pretrain.health import norms, window
from pretrain.health.config import HealthConfig
from pretrain.health.window import Verdict
from pretrain.objectives.batch import Batch, Loss, Objective, tokens_read
from pretrain.sharding import place
from pretrain.state import TrainState

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    accumulate: int,
    health: HealthConfig,
) -> Step:
    """A pure function to be jitted with the state donated.

    A step that is not finite leaves the state as it was, and so do all later ones, so that it can be looked into; under
    `Skip` it counts as done without an update, as a spike does.
    """

    update: Any = optimizer.update  # optax's types know trees of arrays, not modules
    apply: Any = optax.apply_updates

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, loss = mean_gradients(objective, state, batch, accumulate)
        scale = window.lr_scale(health, state.health, state.step)
        more = {} if scale is None else {"lr_scale": scale}
        old = replace(state, optimizer=place.fetch(state.optimizer))
        updates, opt_state = update(grads, old.optimizer, state.model, **more)
        model = apply(state.model, updates)
        mean = loss.total / jnp.maximum(loss.weight, 1)
        verdict = _judged(health, state, mean, opt_state.grad_norm)
        new = TrainState(step=state.step, model=model, optimizer=opt_state, key=state.key, health=state.health)
        new = place.stow(jax.tree.map(lambda a, b: _select(verdict.update, a, b), new, old), state)
        done = verdict.advance.astype(jnp.int32)
        metrics = {
            "loss": mean,
            "weight": loss.weight,
            "tokens": tokens_read(batch.inputs),
            "grad_norm": opt_state.grad_norm,
            "learning_rate": opt_state.learning_rate,
            **{name: value / jnp.maximum(loss.weight, 1) for name, value in loss.metrics.items()},
            "loss_z": verdict.loss_z,
            "grad_norm_z": verdict.norm_z,
            "spike": verdict.spike.astype(jnp.float32),
            "skipped": verdict.window.in_a_row.astype(jnp.float32),
            **norms.by_part("grad_norm", grads),
            **norms.by_part("update_norm", updates),
        }
        return _counted(new, state, done, verdict.window if state.health is not None else None), metrics

    return step


def pass_over(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """A step that leaves its batch out: only the counters move. To be jitted with the state donated."""
    metrics = {"tokens": tokens_read(batch.inputs), "skipped": jnp.float32(1)}
    return _counted(state, state, jnp.int32(1), state.health), metrics


def mean_gradients(objective: Objective, state: TrainState, batch: Batch, accumulate: int) -> tuple[Any, Loss]:
    """Of the step after `state`."""
    key = jax.random.fold_in(state.key, state.step)
    grads, loss = gradients(objective, state.model, batch, key, accumulate)
    return jax.tree.map(lambda g: g / jnp.maximum(loss.weight, 1), grads), loss


def _judged(health: HealthConfig, state: TrainState, loss: jax.Array, norm: jax.Array) -> Verdict:
    usual = window.empty(health.window) if state.health is None else state.health
    return window.judge(health, usual, state.step, loss, norm)


def _counted(new: TrainState, old: TrainState, done: jax.Array, health) -> TrainState:
    """The schedule goes by steps, whether or not they updated anything."""
    optimizer = new.optimizer._replace(step=old.optimizer.step + done)
    return replace(new, step=old.step + done, optimizer=optimizer, health=health)


def _select(chosen: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    if jnp.issubdtype(new.dtype, jax.dtypes.prng_key):
        return old  # the root key never changes
    return jnp.where(chosen, new, old)


def gradients(objective: Objective, model, batch: Batch, key: jax.Array, accumulate: int):
    """(sum of gradients, Loss) over all micro-batches, whose number changes nothing but rounding and memory.

    They are one loop that begins with zeros: a model's layers are compiled once, not for the first one too.
    """

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
    _, said = jax.eval_shape(total, model, jax.tree.map(lambda x: x[0], micros), key)
    nothing = jax.tree.map(jnp.zeros_like, model), jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), said)
    return jax.lax.scan(add, nothing, (micros, jnp.arange(accumulate)))[0]
