"""Learning rates in closed form: a function of the step alone, so a resumed run needs no schedule state."""

import math

import jax
import jax.numpy as jnp

from pretrain.errors import UserError
from pretrain.optimizer.config import WSD, Constant, Cosine, InverseSqrt, Linear, OptimizerConfig, Schedule


def learning_rate(config: OptimizerConfig, step: jax.typing.ArrayLike, total_steps: int) -> jax.Array:
    """The f32 rate of the update after `step` finished ones; groups multiply it by their lr_scale.

    The first of W warm-up steps has peak / W and the last the peak. A decay starts from the peak at its first step and
    would reach its final value at step `total_steps`, one after the last: no step is spent at a rate of zero.

    Raises:
        UserError: The schedule does not fit into `total_steps`.
    """
    if found := [f"optimizer.{message}" for holds, message in config.step_checks(total_steps) if not holds]:
        raise UserError(*found)
    step = jnp.asarray(step).astype(jnp.float32)
    warmup = jnp.minimum(1.0, (step + 1) / max(1, config.schedule.warmup_steps))
    return config.peak_lr * warmup * _after_warmup(config.schedule, step, total_steps)


def _after_warmup(schedule: Schedule, step: jax.Array, total_steps: int) -> jax.Array | float:
    """The fraction of the peak, which is 1 during warm-up."""
    warmup = schedule.warmup_steps
    match schedule:
        case Constant():
            return 1.0
        case InverseSqrt():
            return jnp.sqrt(warmup / jnp.maximum(step + 1, warmup))
        case Linear():
            return _decay("linear", step, warmup, total_steps, schedule.final_fraction)
        case Cosine():
            return _decay("cosine", step, warmup, total_steps, schedule.final_fraction)
        case WSD():
            start = total_steps - schedule.decay_steps(total_steps)
            return _decay(schedule.shape, step, start, total_steps, schedule.final_fraction)


def _decay(shape: str, step: jax.Array, start: int, end: int, final: float) -> jax.Array:
    """From 1 at `start` to `final` at `end`, level before and after."""
    # What is left, not what is done: small numbers near the end keep their digits in f32.
    left = jnp.clip((end - step) / (end - start), 0.0, 1.0)
    match shape:
        case "linear":
            height = left
        case "cosine":
            height = jnp.square(jnp.sin(math.pi / 2 * left))
        case "1-sqrt":
            height = 1 - jnp.sqrt(1 - left)
        case _:
            raise ValueError(f"no decay shape {shape!r}")
    return final + (1 - final) * height
