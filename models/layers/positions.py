"""Where a token stands: rotary, learned and sinusoidal positions."""

import math

import jax
import jax.numpy as jnp

from pretrain.models.config import DynamicNtkScaling, LinearScaling, Llama3Scaling, Rope, YarnScaling

Table = tuple[jax.Array, jax.Array]
"""cos and sin, each [B, T, rotated dimensions / 2] in f32."""


def rope_table(rope: Rope, head_dim: int, positions_BT: jax.Array) -> Table:
    """The angles of every position, scaled as the config says (formulas checked against `transformers`)."""
    rotated = int(head_dim * rope.fraction)
    exponent = jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated
    theta, scaling, magnitude = rope.theta, rope.scaling, 1.0
    if isinstance(scaling, DynamicNtkScaling):
        length = jnp.maximum(jnp.max(positions_BT) + 1, scaling.original_length)
        growth = scaling.factor * length / scaling.original_length - (scaling.factor - 1)
        theta = rope.theta * growth ** (rotated / (rotated - 2))
    frequency = 1.0 / (theta**exponent)
    if isinstance(scaling, LinearScaling):
        frequency = frequency / scaling.factor
    elif isinstance(scaling, Llama3Scaling):
        frequency = _llama3(frequency, scaling)
    elif isinstance(scaling, YarnScaling):
        frequency = _yarn(frequency, scaling, rope.theta, rotated)
        magnitude = scaling.attention_factor
        if magnitude is None:
            magnitude = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    angle = positions_BT.astype(jnp.float32)[..., None] * frequency
    return jnp.cos(angle) * magnitude, jnp.sin(angle) * magnitude


def _llama3(frequency: jax.Array, s: Llama3Scaling) -> jax.Array:
    wavelength = 2 * math.pi / frequency
    smooth = (s.original_length / wavelength - s.low_frequency_factor) / (
        s.high_frequency_factor - s.low_frequency_factor
    )
    between = (1 - smooth) * frequency / s.factor + smooth * frequency
    slow = wavelength > s.original_length / s.low_frequency_factor
    fast = wavelength < s.original_length / s.high_frequency_factor
    return jnp.where(slow, frequency / s.factor, jnp.where(fast, frequency, between))


def _yarn(frequency: jax.Array, s: YarnScaling, theta: float, rotated: int) -> jax.Array:
    def dimension(rotations: float) -> float:
        """The pair that turns so many times over the original length (Peng et al. 2023, equation 18)."""
        return rotated * math.log(s.original_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(s.beta_fast)), 0)
    high = min(math.ceil(dimension(s.beta_slow)), rotated - 1)
    ramp = (jnp.arange(rotated // 2, dtype=jnp.float32) - low) / max(high - low, 0.001)
    keep = 1 - jnp.clip(ramp, 0, 1)
    return frequency / s.factor * (1 - keep) + frequency * keep


def rotate(x: jax.Array, table: Table) -> jax.Array:
    """`x[B, T, ..., H]` turned by its position: the first rotated dimensions, first half against second half."""
    cos, sin = (t.reshape(*t.shape[:2], *(1,) * (x.ndim - 3), t.shape[-1]).astype(x.dtype) for t in table)
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = [a * cos - b * sin, b * cos + a * sin]
    return jnp.concatenate([*turned, rest] if rest.shape[-1] else turned, axis=-1)


def sinusoid(positions_BT: jax.Array, d_model: int, theta: float) -> jax.Array:
    """[B, T, d_model] in f32: sines of all frequencies, then cosines."""
    frequency = theta ** (-jnp.arange(0, d_model, 2, dtype=jnp.float32) / d_model)
    angle = positions_BT.astype(jnp.float32)[..., None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)[..., :d_model]
