"""What decoding remembers. One cache for a whole model: what each layer keeps, and one view of the slots for all."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from pretrain.models.config import BlockConfig, MlaConfig, StackConfig, TransformerConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class KeyValues:
    """Of one attention layer; a leading `layers` axis where the layer is scanned.

    Heads before slots: one head's keys are one matrix in memory, which a step multiplies without moving it.
    """

    keys_BKSH: jax.Array
    values_BKSH: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Latents:
    """Of one layer of latent attention: the latent of keys and values, and the rotary key that all heads share."""

    latents_BSR: jax.Array
    rotary_BSH: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LayerCache:
    mixer: KeyValues | Latents
    cross: KeyValues | None = None
    """Keys and values of the encoder's output: written once, with the first tokens."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class StackCache:
    prefix: tuple[LayerCache, ...]
    pattern: tuple[LayerCache, ...]
    suffix: tuple[LayerCache, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cache:
    """Slots [0, filled) hold tokens. A slot of segment 0 is padding or still empty: nobody sees it."""

    layers: StackCache
    segments_BS: jax.Array
    positions_BS: jax.Array | None
    """None where no layer asks."""
    encoded_segments_BS: jax.Array | None
    """Of the encoder's tokens; None without an encoder."""
    filled: jax.Array


def empty_cache(config: TransformerConfig, batch: int, length: int, dtype: jnp.dtype, encoded_length: int = 0) -> Cache:
    """Room for `length` tokens in each of `batch` rows of the decoder, which reads `encoded_length` of an encoder."""

    def keys(heads: int, head_dim: int, slots: int, *lead: int) -> KeyValues:
        shape = (*lead, batch, heads, slots, head_dim)
        return KeyValues(keys_BKSH=jnp.zeros(shape, dtype), values_BKSH=jnp.zeros(shape, dtype))

    def of(block: BlockConfig, *lead: int) -> LayerCache:
        mixer, cross = block.mixer, block.cross
        if isinstance(mixer, MlaConfig):
            mine = Latents(
                latents_BSR=jnp.zeros((*lead, batch, length, mixer.kv_rank), dtype),
                rotary_BSH=jnp.zeros((*lead, batch, length, mixer.rope_dim), dtype),
            )
        else:
            mine = keys(mixer.kv_heads, mixer.head_dim, length, *lead)
        across = keys(cross.kv_heads, cross.head_dim, encoded_length, *lead) if cross else None
        return LayerCache(mixer=mine, cross=across)

    stack: StackConfig = config.stack
    layers = StackCache(
        prefix=tuple(of(b) for b in stack.prefix),
        pattern=tuple(of(b, stack.repeats) for b in stack.pattern),
        suffix=tuple(of(b) for b in stack.suffix),
    )
    slots = jnp.zeros((batch, length), jnp.int32)
    encoded = jnp.zeros((batch, encoded_length), jnp.int32) if config.encoder and config.decoder else None
    return Cache(
        layers=layers,
        segments_BS=slots,
        positions_BS=slots if any(getattr(b.mixer, "chunk", None) for b in stack.periods) else None,
        encoded_segments_BS=encoded,
        filled=jnp.int32(0),
    )
