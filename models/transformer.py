"""The one transformer."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.errors import check
from pretrain.models.block import dropout
from pretrain.models.cache import Cache
from pretrain.models.config import StackConfig, TransformerConfig
from pretrain.models.init import Init, weight
from pretrain.models.layers.attention import Rows
from pretrain.models.layers.embed import Embed
from pretrain.models.layers.heads import Head, Unembed
from pretrain.models.layers.positions import Table, rope_table
from pretrain.models.stack import Stack, unroll


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a model reads: int32, [B, T] each."""

    tokens: jax.Array
    positions: jax.Array | None = None
    """Place of each token in its document; None: its place in the row."""
    segments: jax.Array | None = None
    """Number of the document in the row from 1, 0 is padding; None: one document fills each row."""
    encoder: "Inputs | None" = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Output:
    hidden_BTD: jax.Array
    cache: Cache | None = None


class Transformer(nnx.Module):
    """Raises UserError when the config contradicts itself. Activations have the type `dtype`, parameters are f32."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32):
        check(config)
        init = Init.of(config, rngs)
        self.config, self.dtype = config, jnp.dtype(dtype)
        self.embed = Embed(config.embed, config.vocab_size, config.d_model, init)
        self.encoder = Stack(config.encoder, config.d_model, init) if config.encoder else None
        self.decoder = Stack(config.decoder, config.d_model, init) if config.decoder else None
        self.head = Head(config.head, config.vocab_size, config.d_model, init)

    def __call__(self, inputs: Inputs, *, cache: Cache | None = None, key: jax.Array | None = None) -> Output:
        """Hidden states of the last stack; `logits` turns them into logits.

        `cache`: these tokens come after the ones it holds. `key`: of dropout; None outside training.
        """
        keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))
        encoded, encoded_segments = None, None
        if self.encoder is not None:
            source = inputs.encoder or inputs
            encoded, _ = self._run(self.encoder, source, None, keys[0], keys[1])
            encoded_segments = source.segments
        if self.decoder is None:
            return Output(hidden_BTD=encoded)
        hidden, cache = self._run(self.decoder, inputs, cache, keys[0], keys[2], encoded, encoded_segments)
        return Output(hidden_BTD=hidden, cache=cache)

    def unembed(self) -> Unembed:
        kernel, bias = self.head.kernel, self.head.bias
        return Unembed(
            self.config.head,
            kernel_VD=weight(self.embed.tokens, self.dtype) if kernel is None else None,
            kernel_DV=None if kernel is None else weight(kernel, self.dtype),
            bias_V=None if bias is None else weight(bias, jnp.float32),
        )

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """logits_BTV in f32."""
        return self.unembed()(hidden_BTD)

    def _run(
        self, stack: Stack, inputs: Inputs, cache: Cache | None, embed_key, key, encoded=None, encoded_segments=None
    ):
        tokens_BT, segments_BT = inputs.tokens, inputs.segments
        filled = None if cache is None else cache.filled
        positions_BT = inputs.positions
        if positions_BT is None:
            positions_BT = (
                jnp.zeros_like(tokens_BT) + jnp.arange(tokens_BT.shape[1]) + (0 if filled is None else filled)
            )
        cached_segments = None
        if cache is not None:
            new = jnp.ones_like(tokens_BT) if segments_BT is None else segments_BT
            cached_segments = jax.lax.dynamic_update_slice_in_dim(cache.segments_BS, new, filled, axis=1)
        rows = Rows(
            ropes=rope_tables(stack.config, positions_BT),
            segments_BT=segments_BT,
            encoded_BSD=encoded,
            encoded_segments_BS=encoded_segments,
            filled=filled,
            cached_segments_BS=cached_segments,
        )
        x_BTD = self.embed(tokens_BT, positions_BT, self.dtype)
        x_BTD = dropout(x_BTD, self.config.embed.dropout, embed_key)
        x_BTD, layers = stack(x_BTD, rows, cache and cache.layers, key)
        if cache is not None:
            cache = Cache(layers=layers, segments_BS=cached_segments, filled=filled + tokens_BT.shape[1])
        return x_BTD, cache


def rope_tables(config: StackConfig, positions_BT: jax.Array) -> dict[tuple, Table]:
    kinds = {(b.mixer.position, b.mixer.head_dim) for b in config.prefix + config.pattern + config.suffix}
    return {(rope, dim): rope_table(rope, dim, positions_BT) for rope, dim in kinds if rope is not None}


def unrolled(model: Transformer) -> Transformer:
    """The same function with no scan over layers: the form that decodes fastest."""
    out = nnx.clone(model)
    if model.decoder is not None:
        out.decoder = unroll(model.decoder)
        out.config = replace(out.config, decoder=out.decoder.config)
    if model.encoder is not None:
        out.encoder = unroll(model.encoder)
        out.config = replace(out.config, encoder=out.encoder.config)
    return out
