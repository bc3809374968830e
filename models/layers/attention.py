"""Attention of a row to itself, to its cache, or to the encoder's output."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.models.cache import KeyValues
from pretrain.models.config import Alibi, AttentionConfig, RelativeBias
from pretrain.models.init import Init, weight
from pretrain.models.layers import kernels, ring
from pretrain.models.layers.norms import Norm
from pretrain.models.layers.positions import rotate, slopes, spread
from pretrain.models.layers.rows import Rows
from pretrain.sharding import place

QUERY = ("batch", "length", "kv_heads", "groups", "head_dim")
KEY = ("batch", "length", "kv_heads", "head_dim")
CACHED = ("batch", "kv_heads", "length", "head_dim")
ROWS = ("batch", "length")


class Attention(nnx.Module):
    def __init__(self, config: AttentionConfig, d_model: int, init: Init):
        c, embed, hd = config, ("embed", d_model), ("head_dim", config.head_dim)
        kv, groups = ("kv_heads", c.kv_heads), ("groups", c.heads // c.kv_heads)
        gain = c.head_dim**-0.5 if c.scale == 1 else 1.0  # T5 puts the scale into its queries' weights
        self.config = config
        self.query = init.matrix(embed, kv, groups, hd, gain=gain)
        self.key = init.matrix(embed, kv, hd)
        self.value = init.matrix(embed, kv, hd)
        self.fused = nnx.data(None)
        self.out = init.matrix(kv, groups, hd, embed, inputs=3, residual=True)
        self.query_bias = init.vector(0.0, kv, groups, hd) if c.bias else None
        self.key_bias = init.vector(0.0, kv, hd) if c.bias else None
        self.value_bias = init.vector(0.0, kv, hd) if c.bias else None
        self.out_bias = init.vector(0.0, ("features", d_model)) if c.out_bias else None
        over = c.qk_norm_over == "all"
        self.query_norm = Norm(c.qk_norm, init, *((kv, groups, hd) if over else (hd,))) if c.qk_norm else None
        self.key_norm = Norm(c.qk_norm, init, *((kv, hd) if over else (hd,))) if c.qk_norm else None
        self.sinks = init.vector(0.0, kv, groups) if c.sinks else None
        own = isinstance(c.position, RelativeBias) and not c.position.shared
        self.relative = init.relative(("table", c.position.buckets), kv, groups) if own else None

    def __call__(self, x_BTD: jax.Array, rows: Rows, cache: KeyValues | None = None, *, cross: bool = False):
        """Returns (y_BTD, cache). `cross`: keys and values come from the encoder's output."""
        x_BTD = place.constrain(x_BTD, "batch", "length", "features")
        q_BTKGH, k_BSKH, v_BSKH = self._products(x_BTD, rows, cross)
        q_BTKGH = self._grown(_finish(q_BTKGH, self.query_bias, self.query_norm), rows)
        if k_BSKH is not None:
            k_BSKH = _finish(k_BSKH, self.key_bias, self.key_norm)
            v_BSKH = _finish(v_BSKH, self.value_bias, None)
            if self.config.rotary is not None and not cross:
                table, interleaved = rows.ropes[self.config.rotary], self.config.rotary[0].interleaved
                q_BTKGH, k_BSKH = rotate(q_BTKGH, table, interleaved), rotate(k_BSKH, table, interleaved)
            k_BSKH, v_BSKH = checkpoint_name(k_BSKH, "key"), checkpoint_name(v_BSKH, "value")
            if cache is not None:
                start = jnp.int32(0) if cross else rows.filled
                cache = KeyValues(
                    keys_BKSH=write(cache.keys_BKSH, k_BSKH.swapaxes(1, 2), start, 2),
                    values_BKSH=write(cache.values_BKSH, v_BSKH.swapaxes(1, 2), start, 2),
                )
        q_BTKGH = checkpoint_name(q_BTKGH, "query")
        o_BTKGH = checkpoint_name(self._mix(q_BTKGH, k_BSKH, v_BSKH, rows, cache, cross), "attention")
        y_BTD = place.project(o_BTKGH, weight(self.out, x_BTD.dtype), "batch", "sequence", "features", contract=3)
        if self.out_bias is not None:
            y_BTD = y_BTD + weight(self.out_bias, y_BTD.dtype)
        return checkpoint_name(y_BTD, "attention_out"), cache

    def fuse(self) -> None:
        """Queries, keys and values become one product, for decoding on one device: self-attention only."""
        matrices = [weight(p, p[...].dtype) for p in (self.query, self.key, self.value)]
        kernels_DN = [w.reshape(w.shape[0], -1) for w in matrices]
        self.fused = nnx.Param(
            jnp.concatenate(kernels_DN, axis=1), axes=("embed", None), inputs=1, maps=0, sign_rate=None
        )
        self.query = self.key = self.value = None

    def _products(self, x_BTD, rows: Rows, cross: bool):
        """Queries, keys and values before bias and norm; no keys where the cache has those of the encoder."""
        c, dtype = self.config, x_BTD.dtype
        if self.fused is None:
            q_BTKGH = place.project(x_BTD, weight(self.query, dtype), *QUERY)
            source = rows.encoded_BSD if cross else x_BTD
            if source is None:
                return q_BTKGH, None, None
            source = place.constrain(source, "batch", "length", "features")
            k_BSKH = place.project(source, weight(self.key, dtype), *KEY)
            return q_BTKGH, k_BSKH, place.project(source, weight(self.value, dtype), *KEY)
        y_BTN = place.project(x_BTD, weight(self.fused, dtype), "batch", "length", None)
        q_BTN, k_BTN, v_BTN = jnp.split(y_BTN, [c.heads * c.head_dim, (c.heads + c.kv_heads) * c.head_dim], axis=-1)
        lead, one = x_BTD.shape[:2], (c.kv_heads, c.head_dim)
        q_BTKGH = q_BTN.reshape(*lead, c.kv_heads, c.heads // c.kv_heads, c.head_dim)
        return q_BTKGH, k_BTN.reshape(*lead, *one), v_BTN.reshape(*lead, *one)

    def _grown(self, q_BTKGH: jax.Array, rows: Rows) -> jax.Array:
        growth = self.config.growth
        if growth is None:
            return q_BTKGH
        steps_BT = jnp.floor((rows.positions_BT.astype(jnp.float32) + 1) / growth.floor)
        factor_BT = 1 + growth.scale * jnp.log1p(steps_BT)
        return (q_BTKGH * factor_BT[..., None, None, None]).astype(q_BTKGH.dtype)

    def _bias(self, rows: Rows, keys: int) -> jax.Array | None:
        """bias_NKG of each distance."""
        c = self.config
        if isinstance(c.position, RelativeBias):
            return rows.relative_bias(c.position, self.relative, c.causal, keys)
        if isinstance(c.position, Alibi):
            slope_KG = jnp.asarray(slopes(c.position, c.heads)).reshape(c.kv_heads, -1)
            return place.constrain(-jnp.abs(rows.distances(keys))[:, None, None] * slope_KG, None, "kv_heads", "groups")
        return None

    def _mix(self, q_BTKGH, k_BSKH, v_BSKH, rows: Rows, cache: KeyValues | None, cross: bool) -> jax.Array:
        c = self.config
        slots = k_BSKH.shape[1] if cache is None else cache.keys_BKSH.shape[2]
        bias_NKG = None if cross else self._bias(rows, slots)
        sinks_KG = None if self.sinks is None else weight(self.sinks, jnp.float32)
        scale = c.head_dim**-0.5 if c.scale is None else c.scale
        causal, window = c.causal and not cross, None if cross else c.window
        softcap, seen = c.softcap, rows.seen(cross, c.chunk)
        options = {"window": window, "softcap": softcap, "bias_NKG": bias_NKG, "sinks_KG": sinks_KG, "cross": cross}
        if cache is None:
            return mix(q_BTKGH, k_BSKH, v_BSKH, rows, seen, scale, causal, **options)
        keys, values = cache.keys_BKSH, cache.values_BKSH
        return mix(q_BTKGH, keys, values, rows, seen, scale, causal, **options, key_axes=CACHED)


def mix(
    q_BTKGH: jax.Array,
    k: jax.Array,
    v: jax.Array,
    rows: Rows,
    seen_BT: tuple[jax.Array | None, jax.Array | None],
    scale: float,
    causal: bool,
    *,
    window: int | None = None,
    softcap: float | None = None,
    bias_NKG: jax.Array | None = None,
    sinks_KG: jax.Array | None = None,
    cross: bool = False,
    query_axes: place.Axes = QUERY,
    key_axes: place.Axes = KEY,
) -> jax.Array:
    """o_BTKGV, each device mixing its own heads of its own tokens.

    Devices that share the tokens of a row collect its keys and values, or pass them round (`ring`).
    """
    T, shared, cached = q_BTKGH.shape[1], place.devices("length"), key_axes == CACHED
    start = None if cross else rows.start
    prefix_BT = None if cross or start is not None else rows.prefix_BT
    passed = shared > 1 and place.schedule().ring and not cross and bias_NKG is None and start is None

    def attend(q, k, v, q_segments, kv_segments, prefix, bias, sinks, start):
        if cached:
            k, v = k.swapaxes(1, 2).astype(q.dtype), v.swapaxes(1, 2).astype(q.dtype)
        k, v = place.like(k, q), place.like(v, q)
        part = None
        if q.shape[1] < T and not passed and (causal or window is not None or bias is not None):
            part = jax.lax.axis_index(place.mesh_axes("length"))
        mask = kernels.Mask(
            q_segments_BT=q_segments,
            kv_segments_BS=kv_segments,
            q_index_T=None if start is None or part is not None else start + jnp.arange(q.shape[1]),
            kv_prefix_BS=prefix,
            causal=causal,
            window=window,
            parts=1 if part is None else shared,
            part=part,
        )
        if passed:
            options = {"softcap": softcap, "sinks_KG": sinks, "dealt": rows.dealt}
            return ring.ring_attention(q, k, v, mask=mask, scale=scale, **options)
        if bias is not None and q.shape[1] < T:  # the diagonals that these queries meet
            first = part * q.shape[1]
            bias = jax.lax.dynamic_slice_in_dim(bias, T - q.shape[1] - first, q.shape[1] + k.shape[1] - 1)
        bias_KGTS = None if bias is None else spread(bias, q.shape[1])
        return kernels.attention(q, k, v, mask=mask, scale=scale, softcap=softcap, bias_KGTS=bias_KGTS, sinks_KG=sinks)

    seen_axes, bias_axes, sink_axes = ROWS, (None, "kv_heads", "groups"), ("kv_heads", "groups")
    if not passed:
        key_axes, seen_axes = (_whole(axes) for axes in (key_axes, seen_axes))
    seen = (ROWS, seen_axes, seen_axes)
    attend = place.local(attend, (query_axes, key_axes, key_axes, *seen, bias_axes, sink_axes, ()), query_axes)
    if start is not None and place.platform() == "cpu":
        attend = _apart(attend)
    return attend(q_BTKGH, k, v, *seen_BT, prefix_BT, bias_NKG, sinks_KG, start)


def _whole(axes: place.Axes) -> place.Axes:
    return tuple(None if axis == "length" else axis for axis in axes)


def _finish(y: jax.Array, bias: nnx.Param | None, norm: Norm | None) -> jax.Array:
    y = y if bias is None else y + weight(bias, y.dtype)
    return y if norm is None else norm(y)


def _apart(attend):
    """`attend` behind a branch that is always taken.

    XLA's CPU compiler fuses the cache's update into each product that reads it, copying the cache every time; it does
    not fuse into a branch: 0.1 ms instead of 0.7 in a step of 8 layers over 256 slots.
    """

    def run(q, k, v, *rest):
        def never(q, k, v, *_):
            return q if q.shape[-1] == v.shape[-1] else q[..., : v.shape[-1]]

        return jax.lax.cond(rest[-1] >= 0, attend, never, q, k, v, *rest)

    return run


def write(cache: jax.Array, new: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), start, axis=axis)
