"""The one transformer."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.errors import check
from pretrain.models.ahead import Ahead, following
from pretrain.models.cache import Cache
from pretrain.models.config import Alibi, BlockConfig, RelativeBias, StackConfig, TransformerConfig
from pretrain.models.init import Init
from pretrain.models.layers.embed import Embed
from pretrain.models.layers.heads import Head, Task, Unembed
from pretrain.models.layers.moe import Losses
from pretrain.models.layers.positions import Table, rope_table
from pretrain.models.layers.ring import straight, zigzag
from pretrain.models.layers.rows import Rows
from pretrain.models.lora import adapt
from pretrain.models.stack import Stack, added, unroll
from pretrain.sharding import place


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a model reads: int32, [B, T] each."""

    tokens: jax.Array
    positions: jax.Array | None = None
    """Place of each token in its document; None: its place in the row."""
    segments: jax.Array | None = None
    """Number of the document in the row from 1, 0 is padding; None: one document fills each row."""
    prefix: jax.Array | None = None
    """1 for tokens that those before them in their document see too (prefix language models); None: for none."""
    types: jax.Array | None = None
    """Kind of each token, as BERT's sentences A and B; None: 0."""
    encoder: "Inputs | None" = None
    """What the encoder reads, where there is a decoder too; its segment n is read by segment n of the decoder."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Output:
    hidden_BTD: jax.Array
    """Of the last stack."""
    encoded_BSD: jax.Array | None = None
    """Of the encoder before a decoder."""
    cache: Cache | None = None
    losses: Losses
    """Of the layers themselves (mixtures of experts): means over tokens, each times its weight. What begins with "_"
    is 0 and there for its gradient."""


class Transformer(nnx.Module):
    """Raises UserError when the config contradicts itself. Activations have the type `dtype`, parameters are f32."""

    def __init__(
        self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32, embed: bool = True
    ):
        """`embed`: False for a part that uses the embeddings of another."""
        check(config)
        c, D, init = config, config.d_model, Init.of(config, rngs)
        self.config, self.dtype = config, jnp.dtype(dtype)
        self.embed = Embed(c.embed, c.vocab_size, D, init) if embed else None
        self.encoder = Stack(c.encoder, c.embed, D, init) if c.encoder else None
        self.decoder = Stack(c.decoder, c.embed, D, init) if c.decoder else None
        self.head = Head(c.head, c.vocab_size, D, c.embed.width or D, init) if c.head else None
        self.tasks = nnx.Dict({task.name: Task(task, D, init) for task in c.tasks})
        self.ahead_modules = nnx.List([Ahead(c.ahead, D, init) for _ in range(c.ahead.depth)] if c.ahead else [])
        small = c.generates
        self.generator = Transformer(small, rngs=rngs, dtype=dtype, embed=False) if small else None
        if c.adapters:
            adapt(self, c.adapters, init)

    def __call__(self, inputs: Inputs, *, cache: Cache | None = None, key: jax.Array | None = None) -> Output:
        """Hidden states of the last stack; `logits` turns them into logits.

        `cache`: these tokens come after the ones it holds; an encoder is read once, with the first. `key`: of dropout;
        None outside training.
        """
        return self._read(self.embed, inputs, cache, key)

    def unembed(self) -> Unembed:
        """The head, ready for use. Raises ValueError for a model without one."""
        return self._unembed(self.embed)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """logits_BTV in f32."""
        return self.unembed()(hidden_BTD)

    def task(self, name: str, hidden_BTD: jax.Array, segments_BT: jax.Array | None = None, key=None) -> jax.Array:
        """What another head says, in f32: see `TaskConfig`."""
        return self.tasks[name](hidden_BTD, segments_BT, key)

    def generated(self, inputs: Inputs, *, key: jax.Array | None = None) -> tuple[jax.Array, Unembed]:
        """(hidden_BTD, head) of the generator, which shares this model's embeddings (ELECTRA)."""
        out = self.generator._read(self.embed, inputs, None, key)
        return out.hidden_BTD, self.generator._unembed(self.embed)

    def ahead(self, hidden_BTD: jax.Array, inputs: Inputs, *, key=None) -> tuple[tuple[jax.Array, ...], Losses]:
        """Hidden states of each depth d, from which the same head predicts the token d + 2 places on; their losses."""
        out, losses = [], {}
        positions_BT = _positions(inputs, None)
        rows = self._rows([module.block.config for module in self.ahead_modules], inputs, positions_BT)
        for d, module in enumerate(self.ahead_modules):
            types_BT = None if inputs.types is None else following(inputs.types, d + 1)
            next_BTD = self.embed(following(inputs.tokens, d + 1), types_BT, self.dtype)
            k = None if key is None else jax.random.fold_in(key, d)
            hidden_BTD, more = module(hidden_BTD, next_BTD, rows, k)
            losses = added(losses, more)
            out.append(hidden_BTD)
        return tuple(out), losses

    def _unembed(self, embed: Embed) -> Unembed:
        if self.head is None:
            raise ValueError("found a model without a head, expected TransformerConfig.head; use its tasks")
        return self.head.ready(embed.tokens, self.dtype)

    def _read(self, embed: Embed, inputs: Inputs, cache: Cache | None, key) -> Output:
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        encoded, source, losses = None, None, {}
        if self.encoder is not None:
            source = inputs.encoder if self.decoder is not None else inputs
            if source is None and cache is None:
                raise ValueError("found no inputs of the encoder, expected Inputs.encoder beside the decoder's tokens")
        if self.encoder is not None and source is not None:
            encoded, _, losses = self._run(embed, self.encoder, source, None, keys[0])
        if self.decoder is None:
            return Output(hidden_BTD=encoded, losses=losses)
        hidden, cache, more = self._run(embed, self.decoder, inputs, cache, keys[1], encoded, source)
        return Output(hidden_BTD=hidden, encoded_BSD=encoded, cache=cache, losses=added(losses, more))

    def _run(self, embed: Embed, stack: Stack, inputs: Inputs, cache: Cache | None, key, encoded=None, source=None):
        positions_BT = _positions(inputs, cache)
        dealt = cache is None and inputs.prefix is None and _dealt(stack.config)
        if dealt:
            inputs, positions_BT = jax.tree.map(zigzag, (replace(inputs, encoder=None), positions_BT))
        cache = None if cache is None else _noted(cache, inputs, positions_BT, source)
        rows = self._rows(stack.config.periods, inputs, positions_BT, cache, encoded, source and source.segments)
        rows = replace(rows, dealt=dealt)
        x_BTW = embed(inputs.tokens, inputs.types, self.dtype)
        x_BTD, layers, losses = stack(x_BTW, rows, cache and cache.layers, key)
        if cache is not None:
            cache = replace(cache, layers=layers, filled=cache.filled + inputs.tokens.shape[1])
        return straight(x_BTD) if dealt else x_BTD, cache, losses

    def _rows(self, blocks, inputs: Inputs, positions_BT, cache: Cache | None = None, encoded=None, segments_BS=None):
        return Rows(
            positions_BT=positions_BT,
            ropes=rope_tables(blocks, positions_BT),
            segments_BT=inputs.segments,
            prefix_BT=inputs.prefix,
            encoded_BSD=encoded,
            encoded_segments_BS=segments_BS if cache is None else cache.encoded_segments_BS,
            filled=cache and cache.filled,
            slots=cache and cache.segments_BS.shape[1],
            cached_segments_BS=cache and cache.segments_BS,
            cached_positions_BS=cache and cache.positions_BS,
        )


def _dealt(stack: StackConfig) -> bool:
    """Whether its rows are passed round, and none of its layers needs the order of the text."""
    if place.devices("length") == 1 or not place.schedule().ring:
        return False
    mixers = [block.mixer for block in stack.blocks]
    biased = [isinstance(getattr(m, "position", None), RelativeBias | Alibi) for m in mixers]
    return all(m.causal for m in mixers) and not any(biased)


def _positions(inputs: Inputs, cache: Cache | None) -> jax.Array:
    if inputs.positions is not None:
        return inputs.positions
    first = 0 if cache is None else cache.filled
    return jnp.zeros_like(inputs.tokens) + jnp.arange(inputs.tokens.shape[1]) + first


def _noted(cache: Cache, inputs: Inputs, positions_BT: jax.Array, source: Inputs | None) -> Cache:
    """The view of the slots with these tokens in it."""

    def noted(slots_BS, new_BT):
        return jax.lax.dynamic_update_slice_in_dim(slots_BS, new_BT, cache.filled, axis=1)

    new = jnp.ones_like(inputs.tokens) if inputs.segments is None else inputs.segments
    cache = replace(cache, segments_BS=noted(cache.segments_BS, new))
    if cache.positions_BS is not None:
        cache = replace(cache, positions_BS=noted(cache.positions_BS, positions_BT))
    if source is not None:
        segments = jnp.ones_like(source.tokens) if source.segments is None else source.segments
        cache = replace(cache, encoded_segments_BS=segments)
    return cache


def rope_tables(blocks: "list[BlockConfig] | tuple[BlockConfig, ...]", positions_BT: jax.Array) -> dict[tuple, Table]:
    kinds = {block.mixer.rotary for block in blocks} - {None}
    return {(rope, dim): rope_table(rope, dim, positions_BT) for rope, dim in kinds}


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
