"""From token ids to the residual stream."""

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.models.config import EmbedConfig, LearnedPositions, NormConfig, SinusoidalPositions
from pretrain.models.init import Init, weight
from pretrain.models.layers.norms import features
from pretrain.models.layers.positions import sinusoid
from pretrain.sharding import place

STREAM = ("batch", "sequence", "features")


class Embed(nnx.Module):
    """The tables that encoder and decoder share."""

    def __init__(self, config: EmbedConfig, vocab_size: int, d_model: int, init: Init):
        width = ("embed", config.width or d_model)
        self.config = config
        self.tokens = init.table(("vocab", vocab_size), width)
        self.types = init.table(("table", config.types), width) if config.types else None

    def __call__(self, tokens_BT: jax.Array, types_BT: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
        """In the embeddings' own width."""
        x_BTW = place.take(weight(self.tokens, dtype), tokens_BT, *STREAM)
        if self.config.scale is not None:
            x_BTW = x_BTW * jnp.asarray(self.config.scale, dtype)
        if self.types is not None:
            types_BT = jnp.zeros_like(tokens_BT) if types_BT is None else types_BT
            x_BTW = x_BTW + place.take(weight(self.types, dtype), types_BT, *STREAM)
        return x_BTW


class Entry(nnx.Module):
    """What a stack does to the embeddings before its first layer: positions, norm, dropout, width."""

    def __init__(self, positions, norm: NormConfig | None, embed: EmbedConfig, d_model: int, init: Init):
        W = embed.width or d_model
        self.config, self.rate = positions, embed.dropout
        learned = isinstance(positions, LearnedPositions)
        self.positions = init.table(("table", positions.length + positions.offset), ("embed", W)) if learned else None
        self.norm = features(norm, W, init) if norm else None
        self.widen = init.matrix((None, W), ("embed", d_model)) if d_model != W else None
        self.widen_bias = init.vector(0.0, ("features", d_model)) if d_model != W else None

    def __call__(self, x_BTW: jax.Array, positions_BT: jax.Array, key: jax.Array | None) -> jax.Array:
        dtype = x_BTW.dtype
        if isinstance(self.config, LearnedPositions):
            x_BTW = x_BTW + place.take(weight(self.positions, dtype), positions_BT + self.config.offset, *STREAM)
        if isinstance(self.config, SinusoidalPositions):
            waves_BTW = sinusoid(positions_BT, x_BTW.shape[-1], self.config.theta).astype(dtype)
            x_BTW = x_BTW + place.constrain(waves_BTW, *STREAM)
        x_BTW = dropout(x_BTW if self.norm is None else self.norm(x_BTW), self.rate, key)
        if self.widen is None:
            return x_BTW
        return place.project(x_BTW, weight(self.widen, dtype), *STREAM) + weight(self.widen_bias, dtype)


def dropout(x_BTD: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Srivastava et al. 2014, scaled in training."""
    if key is None or rate == 0:
        return x_BTD
    keep_BTD = place.constrain(jax.random.bernoulli(key, 1 - rate, x_BTD.shape), *STREAM)
    return jnp.where(keep_BTD, x_BTD / (1 - rate), 0).astype(x_BTD.dtype)
