"""RMSNorm and LayerNorm over the last dimension, in f32."""

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.models.config import NormConfig
from pretrain.models.init import Init, weight
from pretrain.sharding.axes import Axis


class Norm(nnx.Module):
    def __init__(self, config: NormConfig, width: int, init: Init, axis: Axis | None = None):
        self.config = config
        self.scale = init.vector(1.0, (axis, width))
        self.bias = init.vector(0.0, (axis, width)) if config.bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        if self.config.kind == "layer":
            x32 = x32 - x32.mean(-1, keepdims=True)
        y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.config.eps)
        y = y * weight(self.scale, jnp.float32)
        if self.bias is not None:
            y = y + weight(self.bias, jnp.float32)
        return y.astype(x.dtype)
