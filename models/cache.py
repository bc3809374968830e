"""What decoding remembers. One cache for a whole model: what each layer keeps, and one view of the slots for all."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from pretrain.models.config import BlockConfig, StackConfig, TransformerConfig


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
class StackCache:
    prefix: tuple[KeyValues, ...]
    pattern: tuple[KeyValues, ...]
    suffix: tuple[KeyValues, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cache:
    """Slots [0, filled) hold tokens. A slot of segment 0 is padding or still empty: nobody sees it."""

    layers: StackCache
    segments_BS: jax.Array
    filled: jax.Array


def empty_cache(config: TransformerConfig, batch: int, length: int, dtype: jnp.dtype) -> Cache:
    """Room for `length` tokens in each of `batch` rows of the decoder."""

    def of(block: BlockConfig, *lead: int) -> KeyValues:
        shape = (*lead, batch, block.mixer.kv_heads, length, block.mixer.head_dim)
        return KeyValues(keys_BKSH=jnp.zeros(shape, dtype), values_BKSH=jnp.zeros(shape, dtype))

    stack: StackConfig = config.stack
    layers = StackCache(
        prefix=tuple(of(b) for b in stack.prefix),
        pattern=tuple(of(b, stack.repeats) for b in stack.pattern),
        suffix=tuple(of(b) for b in stack.suffix),
    )
    return Cache(layers=layers, segments_BS=jnp.zeros((batch, length), jnp.int32), filled=jnp.int32(0))
