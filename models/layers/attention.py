"""Attention of a row to itself, to its cache, or to the encoder's output."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.models.cache import KeyValues
from pretrain.models.config import AttentionConfig, Rope
from pretrain.models.init import Init, weight
from pretrain.models.layers import kernels
from pretrain.models.layers.norms import Norm
from pretrain.models.layers.positions import Table, rotate
from pretrain.sharding import place

QUERY = ("batch", "length", "kv_heads", "groups", "head_dim")
KEY = ("batch", "length", "kv_heads", "head_dim")
ROWS = ("batch", "length")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What every layer needs to know of the rows it works on."""

    ropes: dict[tuple[Rope, int], Table]
    """The angles of each kind of rotary position in the stack, by (Rope, head_dim)."""
    segments_BT: jax.Array | None
    """Documents packed in a row, numbered from 1; 0 is padding. None: one document fills every row."""
    encoded_BSD: jax.Array | None = None
    encoded_segments_BS: jax.Array | None = None
    filled: jax.Array | None = None
    """Slots of the cache that hold tokens before these; None without a cache."""
    cached_segments_BS: jax.Array | None = None
    """Segments of all slots of the cache, these tokens included."""


class Attention(nnx.Module):
    def __init__(self, config: AttentionConfig, d_model: int, init: Init):
        c, embed, hd = config, ("embed", d_model), ("head_dim", config.head_dim)
        kv, groups = ("kv_heads", c.kv_heads), ("groups", c.heads // c.kv_heads)
        self.config = config
        self.query = init.matrix(embed, kv, groups, hd)
        self.key = init.matrix(embed, kv, hd)
        self.value = init.matrix(embed, kv, hd)
        self.out = init.matrix(kv, groups, hd, embed, inputs=3, residual=True)
        self.query_bias = init.vector(0.0, kv, groups, hd) if c.bias else None
        self.key_bias = init.vector(0.0, kv, hd) if c.bias else None
        self.value_bias = init.vector(0.0, kv, hd) if c.bias else None
        self.out_bias = init.vector(0.0, ("features", d_model)) if c.out_bias else None
        self.query_norm = Norm(c.qk_norm, c.head_dim, init, "head_dim") if c.qk_norm else None
        self.key_norm = Norm(c.qk_norm, c.head_dim, init, "head_dim") if c.qk_norm else None

    def __call__(self, x_BTD: jax.Array, rows: Rows, cache: KeyValues | None = None, *, cross: bool = False):
        """Returns (y_BTD, cache). `cross`: keys and values come from the encoder's output."""
        c = self.config
        x_BTD = place.constrain(x_BTD, "batch", "length", "features")
        source = rows.encoded_BSD if cross else x_BTD
        q_BTKGH = self._heads(x_BTD, self.query, self.query_bias, self.query_norm, QUERY)
        k_BSKH = self._heads(source, self.key, self.key_bias, self.key_norm, KEY)
        v_BSKH = self._heads(source, self.value, self.value_bias, None, KEY)
        if c.position is not None and not cross:
            table = rows.ropes[c.position, c.head_dim]
            q_BTKGH, k_BSKH = rotate(q_BTKGH, table), rotate(k_BSKH, table)
        if cache is not None:
            cache = KeyValues(
                keys_BSKH=_write(cache.keys_BSKH, k_BSKH, rows.filled),
                values_BSKH=_write(cache.values_BSKH, v_BSKH, rows.filled),
            )
            k_BSKH, v_BSKH = cache.keys_BSKH.astype(q_BTKGH.dtype), cache.values_BSKH.astype(q_BTKGH.dtype)
        q_BTKGH, k_BSKH = checkpoint_name(q_BTKGH, "query"), checkpoint_name(k_BSKH, "key")
        v_BSKH = checkpoint_name(v_BSKH, "value")
        o_BTKGH = checkpoint_name(self._mix(q_BTKGH, k_BSKH, v_BSKH, rows, cross), "attention")
        y_BTD = place.project(o_BTKGH, weight(self.out, x_BTD.dtype), "batch", "sequence", "features", contract=3)
        if self.out_bias is not None:
            y_BTD = y_BTD + weight(self.out_bias, y_BTD.dtype)
        return checkpoint_name(y_BTD, "attention_out"), cache

    def _heads(self, x_BTD, kernel: nnx.Param, bias: nnx.Param | None, norm: Norm | None, axes):
        y = place.project(x_BTD, weight(kernel, x_BTD.dtype), *axes)
        y = y if bias is None else y + weight(bias, y.dtype)
        return y if norm is None else norm(y)

    def _mix(self, q_BTKGH, k_BSKH, v_BSKH, rows: Rows, cross: bool) -> jax.Array:
        c = self.config
        q_segments, kv_segments = rows.segments_BT, rows.segments_BT
        if cross:
            kv_segments = rows.encoded_segments_BS
        elif rows.filled is not None:
            kv_segments = rows.cached_segments_BS
        if q_segments is None and kv_segments is not None:
            q_segments = jnp.ones(q_BTKGH.shape[:2], jnp.int32)
        if kv_segments is None and q_segments is not None:
            kv_segments = jnp.ones(k_BSKH.shape[:2], jnp.int32)

        def attend(q, k, v, q_segments, kv_segments, filled):
            mask = kernels.Mask(
                q_segments_BT=q_segments,
                kv_segments_BS=kv_segments,
                q_index_T=None if filled is None else filled + jnp.arange(q.shape[1]),
                causal=c.causal and not cross,
                window=None if cross else c.window,
            )
            scale = c.head_dim**-0.5 if c.scale is None else c.scale
            return kernels.attention(q, k, v, mask=mask, scale=scale, softcap=c.softcap)

        attend = place.local(attend, (QUERY, KEY, KEY, ROWS, ROWS, ()), QUERY)
        return attend(q_BTKGH, k_BSKH, v_BSKH, q_segments, kv_segments, rows.filled)


def _write(cache_BSKH: jax.Array, new_BTKH: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(cache_BSKH, new_BTKH.astype(cache_BSKH.dtype), start, axis=1)
