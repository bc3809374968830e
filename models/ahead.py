"""Predicting more than the next token: modules in a chain (DeepSeek-V3, arXiv:2412.19437, section 2.2)."""

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.models.block import Block
from pretrain.models.config import AheadConfig
from pretrain.models.init import Init, weight
from pretrain.models.layers.moe import Losses
from pretrain.models.layers.norms import features
from pretrain.models.layers.rows import Rows
from pretrain.sharding import place

STREAM = ("batch", "sequence", "features")


class Ahead(nnx.Module):
    """h' = block(join [norm(h), norm(embedding of the next token)]), then a norm for the shared head."""

    def __init__(self, config: AheadConfig, d_model: int, init: Init):
        self.hidden_norm = features(config.norm, d_model, init)
        self.embed_norm = features(config.norm, d_model, init)
        self.join_embed = init.matrix((None, d_model), ("embed", d_model))
        self.join_hidden = init.matrix((None, d_model), ("embed", d_model))
        self.block = Block(config.block, d_model, init)
        self.final_norm = features(config.norm, d_model, init)

    def __call__(self, hidden_BTD: jax.Array, next_BTD: jax.Array, rows: Rows, key) -> tuple[jax.Array, Losses]:
        dtype = hidden_BTD.dtype
        x_BTD = place.project(self.hidden_norm(hidden_BTD), weight(self.join_hidden, dtype), *STREAM)
        x_BTD = x_BTD + place.project(self.embed_norm(next_BTD), weight(self.join_embed, dtype), *STREAM)
        x_BTD, _, load = self.block(x_BTD, rows, None, key)
        return self.final_norm(x_BTD), self.block.losses(load)


def following(x_BT: jax.Array, places: int) -> jax.Array:
    """Each row moved to the left, zeros at its end."""
    return jnp.pad(x_BT[:, places:], ((0, 0), (0, places)))
