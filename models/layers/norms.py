"""RMSNorm and LayerNorm over the last dimensions, in f32."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.models.config import NormConfig
from pretrain.models.init import Init, weight
from pretrain.sharding.axes import Axis


class Norm(nnx.Module):
    """`dims`: name and size of each dimension that is normalised, all of them together."""

    def __init__(self, config: NormConfig, init: Init, *dims: tuple[Axis | None, int]):
        self.config, self.axes = config, tuple(range(-len(dims), 0))
        self.width = math.prod(size for _, size in dims)
        start = {"one": 1.0, "zero": 0.0, "none": None}[config.scale]
        self.scale = None if start is None else init.vector(start, *dims)
        self.bias = init.vector(0.0, *dims) if config.bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        if self.config.kind == "layer":
            x32 = x32 - self._mean(x32)
        y = x32 * jax.lax.rsqrt(self._mean(jnp.square(x32)) + self.config.eps)
        if self.scale is not None:
            scale = weight(self.scale, jnp.float32)
            y = y * (1 + scale if self.config.scale == "zero" else scale)
        if self.bias is not None:
            y = y + weight(self.bias, jnp.float32)
        return y.astype(x.dtype)

    def _mean(self, x: jax.Array) -> jax.Array:
        return jnp.sum(x, axis=self.axes, keepdims=True) / self.width


def features(config: NormConfig, d_model: int, init: Init) -> Norm:
    """Of the residual stream."""
    return Norm(config, init, (None, d_model))
