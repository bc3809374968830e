"""What losses and gradient norms were usual, in the train state, so that a resume judges as if nothing had been."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from pretrain.health.config import HealthConfig, LowerLr, Skip

LEAST = 1e-3
"""Of the mean: the smallest deviation that counts as one, for losses that hardly move."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Window:
    losses_W: jax.Array
    norms_W: jax.Array
    """f32, finite; a value that was a spike is kept as the threshold it crossed."""
    count: jax.Array
    """int32, values so far."""
    lowered_until: jax.Array
    """int32, the last step with a lowered learning rate."""
    in_a_row: jax.Array
    """int32, steps up to the last one that counted without an update."""
    failed: jax.Array
    """bool: a step was not finite and nothing is updated any more."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Of one step; scalars."""

    loss_z: jax.Array
    norm_z: jax.Array
    """f32, deviations above the mean; 0 while too little was seen, infinite for what is not finite."""
    spike: jax.Array
    update: jax.Array
    """Whether parameters and optimizer state move."""
    advance: jax.Array
    """Whether the step counts as done."""
    window: Window


def empty(size: int) -> Window:
    zeros = jnp.zeros(size, jnp.float32)
    zero = jnp.int32(0)
    return Window(losses_W=zeros, norms_W=zeros, count=zero, lowered_until=zero, in_a_row=zero, failed=jnp.bool_(False))


def lr_scale(config: HealthConfig, window: Window | None, step: jax.Array) -> jax.Array | None:
    """Of the update after `step` finished ones; None where no spike lowers it."""
    if window is None or not isinstance(config.policy, LowerLr):
        return None
    return jnp.where(step < window.lowered_until, config.policy.factor, 1.0)


def judge(config: HealthConfig, window: Window, step: jax.Array, loss: jax.Array, norm: jax.Array) -> Verdict:
    """`step`: finished updates before this one."""
    loss_z, loss_limit = _score(window.losses_W, window.count, loss, config.sigmas)
    norm_z, norm_limit = _score(window.norms_W, window.count, norm, config.sigmas)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    spike = finite & ((loss_z > config.sigmas) | (norm_z > config.sigmas))
    skips = isinstance(config.policy, Skip)
    update = finite & ~window.failed & (~spike if skips else True)
    advance = ~window.failed & (True if skips else finite)
    here = (jnp.arange(config.window) == window.count % config.window) & finite & ~window.failed
    lowered = window.lowered_until
    if isinstance(config.policy, LowerLr):
        lowered = jnp.where(spike & ~window.failed, step + 1 + config.policy.steps, lowered)
    new = Window(
        losses_W=jnp.where(here, jnp.minimum(loss, loss_limit), window.losses_W),
        norms_W=jnp.where(here, jnp.minimum(norm, norm_limit), window.norms_W),
        count=window.count + (finite & ~window.failed),
        lowered_until=lowered,
        in_a_row=jnp.where(advance & ~update, window.in_a_row + 1, 0),
        failed=window.failed | ~advance,
    )
    return Verdict(loss_z=loss_z, norm_z=norm_z, spike=spike, update=update, advance=advance, window=new)


def _score(values_W: jax.Array, count: jax.Array, x: jax.Array, sigmas: float) -> tuple[jax.Array, jax.Array]:
    """(deviations of x above the mean, the largest x that is no spike)."""
    size = values_W.shape[0]
    there = jnp.arange(size) < count
    n = jnp.maximum(jnp.minimum(count, size), 1)
    mean = jnp.sum(jnp.where(there, values_W, 0)) / n
    deviation = jnp.sqrt(jnp.sum(jnp.where(there, jnp.square(values_W - mean), 0)) / n)
    deviation = jnp.maximum(jnp.maximum(deviation, LEAST * jnp.abs(mean)), jnp.finfo(jnp.float32).tiny)
    judged = count >= max(size // 2, 2)
    z = jnp.where(judged, (x - mean) / deviation, 0.0)
    limit = jnp.where(judged, mean + sigmas * deviation, jnp.inf)
    return jnp.where(jnp.isfinite(x), z, jnp.inf), limit
