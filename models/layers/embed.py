"""From token ids to the residual stream."""

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.models.config import EmbedConfig, LearnedPositions, SinusoidalPositions
from pretrain.models.init import Init, weight
from pretrain.models.layers.positions import sinusoid
from pretrain.sharding import place

STREAM = ("batch", "sequence", "features")


class Embed(nnx.Module):
    def __init__(self, config: EmbedConfig, vocab_size: int, d_model: int, init: Init):
        self.config = config
        self.tokens = init.table(("vocab", vocab_size), ("embed", d_model))
        positions = config.positions
        learned = isinstance(positions, LearnedPositions)
        self.positions = init.table(("table", positions.length), ("embed", d_model)) if learned else None

    def __call__(self, tokens_BT: jax.Array, positions_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
        x_BTD = place.take(weight(self.tokens, dtype), tokens_BT, *STREAM)
        if self.config.scale is not None:
            x_BTD = x_BTD * jnp.asarray(self.config.scale, dtype)
        if self.positions is not None:
            x_BTD = x_BTD + place.take(weight(self.positions, dtype), positions_BT, *STREAM)
        if isinstance(self.config.positions, SinusoidalPositions):
            waves_BTD = sinusoid(positions_BT, x_BTD.shape[-1], self.config.positions.theta).astype(dtype)
            x_BTD = x_BTD + place.constrain(waves_BTD, *STREAM)
        return x_BTD
