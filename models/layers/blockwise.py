"""Exact attention block by block, with a hand-written backward pass: the implementation for CPUs.

Blocks of queries meet only the keys that causality and the window let them see, decided while tracing, and only one
block's logits exist at a time. As in FlashAttention-2 (Dao 2023, arXiv:2307.08691, algorithms 1 and 2) the backward
pass keeps the output and the logarithm of the softmax's denominator and computes the weights anew; unlike there a block
of queries takes all its keys at once, so that no running maximum is needed.

R = rows of one block, T x G flattened: queries that share their keys are the rows of one matrix product.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pretrain.models.layers.kernels import Mask

QUERIES = 64
"""Queries in a block: on a Zen 3 core, rows of 256 and head_dim 32, about as fast as 128, with smaller logits."""
BLOCKS = 16
"""Blocks at most, so that tracing and compiling a long row stay short."""
MASKED = jnp.finfo(jnp.float32).min


def fits(mask: Mask) -> bool:
    """Whether the blocks can be known while tracing: queries and keys counted from 0, as in training."""
    return mask.counted


def blockwise_attention(
    q_BTKGH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None = None,
    queries: int = QUERIES,
) -> jax.Array:
    """The same as `reference_attention`; raises ValueError for a mask with indices of its own."""
    if not fits(mask):
        raise ValueError("found a mask with indices; blocks need rows counted from 0: use the reference")
    q_BKTGH = q_BTKGH.transpose(0, 2, 1, 3, 4)
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    queries = max(queries, -(-q_BTKGH.shape[1] // BLOCKS))
    return _attend(q_BKTGH, k_BKSH, v_BKSH, mask, scale, softcap, queries).transpose(0, 2, 1, 3, 4)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(q_BKTGH, k_BKSH, v_BKSH, mask: Mask, scale: float, softcap: float | None, queries: int) -> jax.Array:
    return _forward(q_BKTGH, k_BKSH, v_BKSH, mask, scale, softcap, queries)[0]


def _forward(q_BKTGH, k_BKSH, v_BKSH, mask: Mask, scale: float, softcap: float | None, queries: int):
    o_BKTGH, lse_BKTG = [], []
    for t, s in _blocks(mask, q_BKTGH.shape[2], k_BKSH.shape[2], queries):
        q_BKRH, v_BKsH, visible = _rows(q_BKTGH, t), v_BKSH[:, :, s], _visible(mask, t, s, q_BKTGH.shape[3])
        x_BKRs, _ = _logits(q_BKRH, k_BKSH[:, :, s], scale, softcap)
        max_BKR1 = jnp.max(_select(visible, x_BKRs, MASKED), axis=-1, keepdims=True, initial=MASKED)
        p_BKRs = _select(visible, jnp.exp(x_BKRs - max_BKR1), 0.0)
        # At least the largest weight, 1, unless the row sees nothing: then 0 / 1.
        sum_BKR1 = jnp.maximum(jnp.sum(p_BKRs, axis=-1, keepdims=True), 1.0)
        o_BKRH = _dot("BKRS,BKSH->BKRH", p_BKRs.astype(v_BKsH.dtype), v_BKsH) / sum_BKR1
        o_BKTGH.append(_blocked(o_BKRH.astype(q_BKTGH.dtype), q_BKTGH, t))
        lse_BKTG.append(_blocked(max_BKR1 + jnp.log(sum_BKR1), q_BKTGH, t)[..., 0])
    # Named here, where the backward pass takes them from: a remat policy that saves them spares the forward pass.
    o_BKTGH = checkpoint_name(jnp.concatenate(o_BKTGH, axis=2), "attention")
    lse_BKTG = checkpoint_name(jnp.concatenate(lse_BKTG, axis=2), "attention")
    return o_BKTGH, (q_BKTGH, k_BKSH, v_BKSH, mask, o_BKTGH, lse_BKTG)


def _backward(scale: float, softcap: float | None, queries: int, residuals, do_BKTGH):
    q_BKTGH, k_BKSH, v_BKSH, mask, o_BKTGH, lse_BKTG = residuals
    delta_BKTG = jnp.sum(o_BKTGH.astype(jnp.float32) * do_BKTGH, axis=-1)
    dq_BKTGH, dk_BKSH, dv_BKSH = [], jnp.zeros(k_BKSH.shape, jnp.float32), jnp.zeros(v_BKSH.shape, jnp.float32)
    for t, s in _blocks(mask, q_BKTGH.shape[2], k_BKSH.shape[2], queries):
        q_BKRH, do_BKRH, k_BKsH = _rows(q_BKTGH, t), _rows(do_BKTGH, t), k_BKSH[:, :, s]
        lse_BKR1, delta_BKR1 = _rows(lse_BKTG[..., None], t), _rows(delta_BKTG[..., None], t)
        x_BKRs, slope = _logits(q_BKRH, k_BKsH, scale, softcap)
        p_BKRs = _select(_visible(mask, t, s, q_BKTGH.shape[3]), jnp.exp(x_BKRs - lse_BKR1), 0.0)
        dp_BKRs = _dot("BKRH,BKSH->BKRS", do_BKRH, v_BKSH[:, :, s])
        dx_BKRs = (p_BKRs * (dp_BKRs - delta_BKR1) * (slope * scale)).astype(q_BKTGH.dtype)
        dv_BKSH = dv_BKSH.at[:, :, s].add(_dot("BKRS,BKRH->BKSH", p_BKRs.astype(do_BKTGH.dtype), do_BKRH))
        dk_BKSH = dk_BKSH.at[:, :, s].add(_dot("BKRS,BKRH->BKSH", dx_BKRs, q_BKRH))
        dq_BKRH = _dot("BKRS,BKSH->BKRH", dx_BKRs, k_BKsH)
        dq_BKTGH.append(_blocked(dq_BKRH.astype(q_BKTGH.dtype), q_BKTGH, t))
    return jnp.concatenate(dq_BKTGH, axis=2), dk_BKSH.astype(k_BKSH.dtype), dv_BKSH.astype(v_BKSH.dtype), None


_attend.defvjp(_forward, _backward)


def _blocks(mask: Mask, q_length: int, kv_length: int, queries: int) -> Iterator[tuple[slice, slice]]:
    """Each block of queries with the one range of keys it may see."""
    for start in range(0, q_length, queries):
        stop = min(start + queries, q_length)
        first, last = 0, kv_length
        if mask.causal and mask.kv_prefix_BS is None:
            last = min(last, stop)
        if mask.window is not None:
            last = min(last, stop + mask.window - 1)
            first = min(max(0, start - mask.window + 1), last)
        yield slice(start, stop), slice(first, last)


def _visible(mask: Mask, t: slice, s: slice, groups: int) -> jax.Array | None:
    """visible_B1Rs of one block; B is 1 where there are no segments."""
    of_block = Mask(
        q_segments_BT=None if mask.q_segments_BT is None else mask.q_segments_BT[:, t],
        kv_segments_BS=None if mask.kv_segments_BS is None else mask.kv_segments_BS[:, s],
        q_index_T=jnp.arange(t.start, t.stop),
        kv_index_S=jnp.arange(s.start, s.stop),
        kv_prefix_BS=None if mask.kv_prefix_BS is None else mask.kv_prefix_BS[:, s],
        causal=mask.causal,
        window=mask.window,
    )
    visible_BTs = of_block.visible(t.stop - t.start, s.stop - s.start)
    return None if visible_BTs is None else jnp.repeat(visible_BTs, groups, axis=1)[:, None]


def _logits(q_BKRH, k_BKSH, scale: float, softcap: float | None) -> tuple[jax.Array, jax.Array | float]:
    """The logits of a block in f32, and their slope with respect to scale * q k."""
    x_BKRS = _dot("BKRH,BKSH->BKRS", q_BKRH, k_BKSH) * scale
    if softcap is None:
        return x_BKRS, 1.0
    y_BKRS = jnp.tanh(x_BKRS / softcap)
    return softcap * y_BKRS, 1.0 - y_BKRS * y_BKRS


def _select(visible: jax.Array | None, x: jax.Array, otherwise: float) -> jax.Array:
    return x if visible is None else jnp.where(visible, x, otherwise)


def _dot(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _rows(x_BKTGH: jax.Array, t: slice) -> jax.Array:
    B, K, _, G, H = x_BKTGH.shape
    return x_BKTGH[:, :, t].reshape(B, K, (t.stop - t.start) * G, H)


def _blocked(x_BKRH: jax.Array, like_BKTGH: jax.Array, t: slice) -> jax.Array:
    B, K, _, G, _ = like_BKTGH.shape
    return x_BKRH.reshape(B, K, t.stop - t.start, G, x_BKRH.shape[-1])
