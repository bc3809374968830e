"""Where a token stands: rotary and sinusoidal positions, and biases of its distance to another."""

import math

import jax
import jax.numpy as jnp

from pretrain.models.config import (
    Alibi,
    DynamicNtkScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RelativeBias,
    Rope,
    YarnScaling,
)

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
    elif isinstance(scaling, LongRopeScaling):
        far = jnp.max(positions_BT) >= scaling.original_length
        frequency = frequency / jnp.where(far, jnp.asarray(scaling.long_factors), jnp.asarray(scaling.short_factors))
        magnitude = scaling.attention_factor
    angle = positions_BT.astype(jnp.float32)[..., None] * frequency
    return jnp.cos(angle) * magnitude, jnp.sin(angle) * magnitude


def _llama3(frequency: jax.Array, s: Llama3Scaling) -> jax.Array:
    wavelength = 2 * math.pi / frequency
    width = s.high_frequency_factor - s.low_frequency_factor  # 0 in Llama 4: nothing is between
    smooth = (s.original_length / wavelength - s.low_frequency_factor) / max(width, 1e-9)
    between = (1 - smooth) * frequency / s.factor + smooth * frequency
    slow = wavelength > s.original_length / s.low_frequency_factor
    fast = wavelength < s.original_length / s.high_frequency_factor
    return jnp.where(slow, frequency / s.factor, jnp.where(fast, frequency, between))


def _yarn(frequency: jax.Array, s: YarnScaling, theta: float, rotated: int) -> jax.Array:
    def dimension(rotations: float) -> float:
        """The pair that turns so many times over the original length (Peng et al. 2023, equation 18)."""
        return rotated * math.log(s.original_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(s.beta_fast), dimension(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    ramp = (jnp.arange(rotated // 2, dtype=jnp.float32) - low) / max(high - low, 0.001)
    keep = 1 - jnp.clip(ramp, 0, 1)
    return frequency / s.factor * (1 - keep) + frequency * keep


def rotate(x: jax.Array, table: Table, interleaved: bool) -> jax.Array:
    """`x[B, T, ..., H]` turned by its position: the first rotated dimensions; pairs are neighbours or half apart."""
    cos, sin = (t.reshape(*t.shape[:2], *(1,) * (x.ndim - 3), t.shape[-1]).astype(x.dtype) for t in table)
    half = cos.shape[-1]
    rest = x[..., 2 * half :]
    if interleaved:
        a, b = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
        turned = [jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(*x.shape[:-1], 2 * half)]
    else:
        a, b = x[..., :half], x[..., half : 2 * half]
        turned = [a * cos - b * sin, b * cos + a * sin]
    return jnp.concatenate([*turned, rest] if rest.shape[-1] else turned, axis=-1)


def apart(w: jax.Array, table: Table) -> jax.Array:
    """A map to neighbouring pairs as one to pairs half apart, which turn faster: used for queries and keys, it changes
    no product of the two."""
    whole = 2 * table[0].shape[-1]
    return jnp.concatenate([w[..., 0:whole:2], w[..., 1:whole:2], w[..., whole:]], axis=-1)


def sinusoid(positions_BT: jax.Array, d_model: int, theta: float) -> jax.Array:
    """[B, T, d_model] in f32: sines of all frequencies, then cosines."""
    frequency = theta ** (-jnp.arange(0, d_model, 2, dtype=jnp.float32) / d_model)
    angle = positions_BT.astype(jnp.float32)[..., None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)[..., :d_model]


def distances(queries: int, keys: int, start: jax.Array | int) -> jax.Array:
    """distance_N, key minus query, of all pairs of `queries` from slot `start` and `keys` from slot 0: N of them."""
    return jnp.arange(queries + keys - 1) - (queries - 1) - start


def spread(bias_NKG: jax.Array, queries: int) -> jax.Array:
    """bias_KGTS from a bias for each distance: row t is the vector moved by t places.

    A reshape of a padded copy moves them (as in Shaw et al. 2018's music transformer), so that the gradient is a sum
    and no scatter.
    """
    N, K, G = bias_NKG.shape
    rows_TNKG = jnp.broadcast_to(bias_NKG, (queries, N, K, G))
    padded = jnp.pad(rows_TNKG, ((0, 0), (0, 1), (0, 0), (0, 0))).reshape(queries * (N + 1), K, G)
    moved_TNKG = padded[: queries * N].reshape(queries, N, K, G)
    return moved_TNKG[:, queries - 1 :].transpose(2, 3, 0, 1)


def buckets(config: RelativeBias, distance_N: jax.Array, causal: bool) -> jax.Array:
    """The row of the table for each distance (Raffel et al. 2020): half of the buckets are exact, half logarithmic."""
    n, first = config.buckets, jnp.zeros_like(distance_N)
    if causal:
        far = jnp.maximum(-distance_N, 0)
    else:
        n //= 2
        first, far = jnp.where(distance_N > 0, n, 0), jnp.abs(distance_N)
    exact = n // 2
    ratio = jnp.log(jnp.maximum(far, 1).astype(jnp.float32) / exact) / math.log(config.max_distance / exact)
    large = jnp.minimum(exact + (ratio * (n - exact)).astype(jnp.int32), n - 1)
    return first + jnp.where(far < exact, far, large)


def slopes(config: Alibi, heads: int) -> list[float]:
    """One a head: a geometric series, and for a number of heads that is no power of two every other one of the next
    finer series (Press et al. 2022, in the authors' code)."""
    whole = 2 ** math.floor(math.log2(heads))

    def series(n: int) -> list[float]:
        return [2 ** (-config.max_bias * (i + 1) / n) for i in range(n)]

    return series(whole) + series(2 * whole)[0::2][: heads - whole]
