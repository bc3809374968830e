"""What every layer of a stack needs to know of the rows it works on."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.models.config import RelativeBias, Rope
from pretrain.models.init import weight
from pretrain.models.layers.positions import Table, buckets, distances
from pretrain.sharding import place

CHUNKS = 8192
"""Chunks of positions that are told apart in a document."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    positions_BT: jax.Array
    ropes: dict[tuple[Rope, int], Table]
    """The angles of each kind of rotary position in the stack, by (Rope, head_dim)."""
    segments_BT: jax.Array | None
    """Documents packed in a row, numbered from 1; 0 is padding. None: one document fills every row."""
    prefix_BT: jax.Array | None = None
    """1 for tokens that those before them in their document see too."""
    encoded_BSD: jax.Array | None = None
    """None in a decoder whose cache holds what it needs of the encoder's output."""
    encoded_segments_BS: jax.Array | None = None
    filled: jax.Array | None = None
    """Slots of the cache that hold tokens before these; None without a cache."""
    slots: int | None = None
    """Of the cache."""
    cached_segments_BS: jax.Array | None = None
    """Of all slots of the cache, these tokens included."""
    cached_positions_BS: jax.Array | None = None
    dealt: bool = False
    """Tokens lie as `ring.zigzag` deals them to the devices that share a row."""
    relative: nnx.Param | None = None
    """The table of relative biases that all layers share."""

    def parts(self) -> "tuple[dict, Callable[[dict], Rows]]":
        """(what belongs to single rows, arrays [B, ...], and how to put it together again for some of them)."""
        names = ("positions_BT", "ropes", "segments_BT", "prefix_BT", "encoded_BSD", "encoded_segments_BS")
        return {name: getattr(self, name) for name in names}, lambda parts: replace(self, **parts)

    @property
    def start(self) -> jax.Array | None:
        """Slot of the first token; None where the rows begin with it: as many tokens as slots are the first ones."""
        return None if self.slots == self.positions_BT.shape[1] else self.filled

    def seen(self, cross: bool, chunk: int | None) -> tuple[jax.Array | None, jax.Array | None]:
        """(segments of queries, segments of keys): equal where one may see the other, both or none."""
        q, kv = self.segments_BT, self.segments_BT
        if cross:
            kv = self.encoded_segments_BS
        elif self.filled is not None:
            kv = self.cached_segments_BS
        if q is None and (kv is not None or (chunk and not cross)):
            q = jnp.ones_like(self.positions_BT)
        if kv is None and q is not None:
            kv = jnp.ones(self.encoded_BSD.shape[:2], jnp.int32) if cross and self.encoded_BSD is not None else q
        if chunk is None or cross:
            return q, kv
        positions = self.positions_BT if self.filled is None else self.cached_positions_BS
        return _apart(q, self.positions_BT, chunk), _apart(kv, positions, chunk)

    def distances(self, keys: int) -> jax.Array:
        """Key minus query of each diagonal: see `positions.distances`."""
        start = self.start
        return distances(self.positions_BT.shape[1], keys, 0 if start is None else start)

    def relative_bias(self, config: RelativeBias, own: nnx.Param | None, causal: bool, keys: int) -> jax.Array:
        """bias_NKG of each distance, from the layer's own table or the stack's."""
        table = self.relative if config.shared else own
        ids_N = buckets(config, self.distances(keys), causal)
        return place.take(weight(table, jnp.float32), ids_N, None, "kv_heads", "groups")

    def without_cache(self) -> "Rows":
        return replace(self, filled=None, slots=None, cached_segments_BS=None, cached_positions_BS=None)


def _apart(segments: jax.Array, positions: jax.Array, chunk: int) -> jax.Array:
    """Chunks as documents of their own."""
    return jnp.where(segments == 0, 0, segments * CHUNKS + positions // chunk)
