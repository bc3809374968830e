"""Attention of rows that several devices share: keys and values go round, no device ever holds all of them.

Ring attention (Liu et al. 2023, arXiv:2310.01889): in each of C turns a device mixes the keys it has just been handed
into running sums, and hands them on. Where no token sees a later one, rows are dealt in a zigzag (as in Llama 3,
arXiv:2407.21783, section 3.3.2): of 2C chunks device i holds i and 2C - 1 - i, so that every device has as much to do
in every turn. The backward pass goes round once more, the gradients of keys and values travelling with them.

T = tokens of one device, S = keys of one device, C = devices.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pretrain.models.layers.kernels import Mask
from pretrain.sharding import place

MASKED = jnp.finfo(jnp.float32).min
Range = tuple[int, int]


def zigzag(x_BT: jax.Array) -> jax.Array:
    """Tokens of whole rows in the order in which devices take them: chunk i and chunk 2C - 1 - i for device i."""
    C = place.devices("length")
    B, T = x_BT.shape
    chunks = x_BT.reshape(B, 2, C, T // (2 * C))
    return jnp.stack([chunks[:, 0], jnp.flip(chunks[:, 1], axis=1)], axis=2).reshape(B, T)


def straight(x_BTD: jax.Array) -> jax.Array:
    """What `zigzag` has dealt, in the order of the text: two exchanges of half of what a device holds."""
    C, (axis,) = place.devices("length"), place.mesh_axes("length")
    first = [i // 2 if i % 2 == 0 else (2 * C - 1 - i) // 2 for i in range(C)]
    second = [i // 2 if i % 2 else (2 * C - 1 - i) // 2 for i in range(C)]

    def exchange(x_BTD):
        early, late = jnp.split(x_BTD, 2, axis=1)
        even = jax.lax.axis_index(axis) % 2 == 0
        a = jax.lax.ppermute(jnp.where(even, early, late), axis, list(enumerate(first)))
        b = jax.lax.ppermute(jnp.where(even, late, early), axis, list(enumerate(second)))
        return jnp.concatenate([a, b], axis=1)

    dims = ("batch", "length", "features")
    return place.constrain(place.local(exchange, (dims,), dims)(x_BTD), "batch", "sequence", "features")


def index(device: jax.Array, length: int, dealt: bool) -> jax.Array:
    """Places in the row of the `length` tokens that a device holds."""
    if not dealt:
        return device * length + jnp.arange(length)
    half = length // 2
    last = 2 * place.devices("length") - 1 - device
    return jnp.concatenate([device * half + jnp.arange(half), last * half + jnp.arange(half)])


def ring_attention(q_BTKGH, k_BSKH, v_BSKV, *, mask: Mask, scale: float, softcap, sinks_KG, dealt: bool) -> jax.Array:
    """o_BTKGV: `reference_attention` over the keys of all devices, inside `place.local`.

    `mask`: of this device's tokens, without indices. `dealt`: tokens lie as `zigzag` deals them.
    """
    o_BTKGV, lse_BKGT = _ring(q_BTKGH, k_BSKH, v_BSKV, mask, scale, softcap, dealt)
    if sinks_KG is not None:  # a logit more in the softmax makes every weight smaller by one factor
        o_BTKGV = o_BTKGV * _rows(jax.nn.sigmoid(lse_BKGT - sinks_KG[..., None]))
    return o_BTKGV.astype(q_BTKGH.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _ring(q_BTKGH, k_BSKH, v_BSKV, mask: Mask, scale: float, softcap: float | None, dealt: bool):
    return _forward(q_BTKGH, k_BSKH, v_BSKV, mask, scale, softcap, dealt)[0]


def _forward(q_BTKGH, k_BSKH, v_BSKV, mask: Mask, scale: float, softcap: float | None, dealt: bool):
    """((o in f32, logarithm of the softmax's denominator), residuals)."""
    C, axis, me = _where()
    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]

    def met(sums, keys, owner, q: Range, s: Range):
        """The running sums with these queries' part of these keys in it."""
        k_BSKH, v_BSKV, seen_BS = keys
        x_BKGTS, _ = _logits(q_BTKGH[:, slice(*q)], k_BSKH[:, slice(*s)], scale, softcap)
        visible = _visible(mask, seen_BS, me, owner, q, s, T, S, dealt)
        max_BKGT, sum_BKGT, o_BTKGV = (_part(x, q, axis) for x, axis in zip(sums, (3, 3, 1)))
        new_BKGT = jnp.maximum(max_BKGT, jnp.max(jnp.where(visible, x_BKGTS, MASKED), axis=-1))
        p_BKGTS = jnp.where(visible, jnp.exp(x_BKGTS - new_BKGT[..., None]), 0.0)
        shrink_BKGT = jnp.exp(max_BKGT - new_BKGT)
        sum_BKGT = sum_BKGT * shrink_BKGT + jnp.sum(p_BKGTS, axis=-1)
        mixed_BTKGV = _dot("BKGTS,BSKV->BTKGV", p_BKGTS.astype(v_BSKV.dtype), v_BSKV[:, slice(*s)])
        o_BTKGV = o_BTKGV * _rows(shrink_BKGT) + mixed_BTKGV
        parts = (new_BKGT, sum_BKGT, o_BTKGV)
        return tuple(_put(x, y, q, axis) for x, y, axis in zip(sums, parts, (3, 3, 1)))

    keys = (k_BSKH, v_BSKV, _seen(mask))
    sums = met(_nothing(q_BTKGH, keys, mask), keys, me, (0, T), (0, S))

    def turn(carry, n):
        sums, keys = carry
        keys = _hand_on(keys, axis, C)
        return (_some(met, sums, keys, (me - n) % C, me, T, S, dealt), keys), None

    ((max_BKGT, sum_BKGT, o_BTKGV), _), _ = jax.lax.scan(turn, (sums, keys), jnp.arange(1, C))
    sum_BKGT = jnp.maximum(sum_BKGT, 1.0)  # at least the largest weight, unless nothing is seen: then 0 / 1
    # Named where the backward pass takes them from: a remat policy that saves them spares going round again.
    o_BTKGV = checkpoint_name(o_BTKGV / _rows(sum_BKGT), "attention")
    lse_BKGT = checkpoint_name(max_BKGT + jnp.log(sum_BKGT), "attention")
    return (o_BTKGV, lse_BKGT), (q_BTKGH, k_BSKH, v_BSKV, mask, o_BTKGV, lse_BKGT)


def _backward(scale: float, softcap: float | None, dealt: bool, residuals, cotangents):
    q_BTKGH, k_BSKH, v_BSKV, mask, o_BTKGV, lse_BKGT = residuals
    do_BTKGV, dlse_BKGT = cotangents
    C, axis, me = _where()
    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]
    delta_BKGT = jnp.sum(o_BTKGV * do_BTKGV, axis=-1).transpose(0, 2, 3, 1) - dlse_BKGT

    def met(sums, keys, owner, q: Range, s: Range):
        """The gradients with what these queries and these keys add to them."""
        (dq_BTKGH, dk_BSKH, dv_BSKV), (k_BSKH, v_BSKV, seen_BS) = sums, keys
        q_BtKGH, k_BsKH, v_BsKV = q_BTKGH[:, slice(*q)], k_BSKH[:, slice(*s)], v_BSKV[:, slice(*s)]
        do_BtKGV = do_BTKGV[:, slice(*q)]
        x_BKGTS, slope = _logits(q_BtKGH, k_BsKH, scale, softcap)
        visible = _visible(mask, seen_BS, me, owner, q, s, T, S, dealt)
        p_BKGTS = jnp.where(visible, jnp.exp(x_BKGTS - _part(lse_BKGT, q, 3)[..., None]), 0.0)
        dp_BKGTS = _dot("BTKGV,BSKV->BKGTS", do_BtKGV, v_BsKV) - _part(delta_BKGT, q, 3)[..., None]
        dx_BKGTS = (p_BKGTS * dp_BKGTS * (slope * scale)).astype(q_BTKGH.dtype)
        dq_BtKGH = _part(dq_BTKGH, q, 1) + _dot("BKGTS,BSKH->BTKGH", dx_BKGTS, k_BsKH)
        dk_BsKH = _part(dk_BSKH, s, 1) + _dot("BKGTS,BTKGH->BSKH", dx_BKGTS, q_BtKGH)
        dv_BsKV = _part(dv_BSKV, s, 1) + _dot("BKGTS,BTKGV->BSKV", p_BKGTS.astype(v_BSKV.dtype), do_BtKGV)
        return _put(dq_BTKGH, dq_BtKGH, q, 1), _put(dk_BSKH, dk_BsKH, s, 1), _put(dv_BSKV, dv_BsKV, s, 1)

    keys = (k_BSKH, v_BSKV, _seen(mask))
    zeros = tuple(place.like(jnp.zeros(x.shape, jnp.float32), q_BTKGH, do_BTKGV) for x in (q_BTKGH, k_BSKH, v_BSKV))
    sums = met(zeros, keys, me, (0, T), (0, S))

    def turn(carry, n):
        (dq, dk, dv), keys = carry
        dk, dv, keys = _hand_on((dk, dv, keys), axis, C)
        return (_some(met, (dq, dk, dv), keys, (me - n) % C, me, T, S, dealt), keys), None

    ((dq, dk, dv), _), _ = jax.lax.scan(turn, (sums, keys), jnp.arange(1, C))
    dk, dv = _hand_on((dk, dv), axis, C)  # home
    return dq.astype(q_BTKGH.dtype), dk.astype(k_BSKH.dtype), dv.astype(v_BSKV.dtype), None


_ring.defvjp(_forward, _backward)


def _where() -> tuple[int, str, jax.Array]:
    (axis,) = place.mesh_axes("length")
    return place.devices("length"), axis, jax.lax.axis_index(axis)


def _hand_on(tree, axis: str, count: int):
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, [(i, (i + 1) % count) for i in range(count)]), tree)


def _some(met, sums, keys, owner, me, T: int, S: int, dealt: bool):
    """`met` of another device's keys; dealt in a zigzag, half of the pairs: the other half sees nothing.

    Keys of a device before: their first chunk, seen by all. Of one behind: both chunks, seen by the second half.
    """
    if not dealt:
        return met(sums, keys, owner, (0, T), (0, S))
    return jax.lax.cond(
        owner < me,
        lambda: met(sums, keys, owner, (0, T), (0, S // 2)),
        lambda: met(sums, keys, owner, (T // 2, T), (0, S)),
    )


def _seen(mask: Mask) -> tuple[jax.Array | None, jax.Array | None]:
    """What is known of the keys: their segments, and which ones causality does not hide."""
    return mask.kv_segments_BS, mask.kv_prefix_BS


def _visible(mask: Mask, seen, me, owner, q: Range, s: Range, T: int, S: int, dealt: bool) -> jax.Array | bool:
    segments_BS, prefix_BS = (None if x is None else x[:, slice(*s)] for x in seen)
    part = replace(
        mask,
        q_segments_BT=None if mask.q_segments_BT is None else mask.q_segments_BT[:, slice(*q)],
        kv_segments_BS=segments_BS,
        kv_prefix_BS=prefix_BS,
        q_index_T=index(me, T, dealt)[slice(*q)],
        kv_index_S=index(owner, S, dealt)[slice(*s)],
    )
    visible_BTS = part.visible(q[1] - q[0], s[1] - s[0])
    return True if visible_BTS is None else visible_BTS[:, None, None]


def _nothing(q_BTKGH, keys, mask: Mask) -> tuple[jax.Array, jax.Array, jax.Array]:
    B, T, K, G, _ = q_BTKGH.shape
    shapes = ((B, K, G, T), (B, K, G, T), (B, T, K, G, keys[1].shape[-1]))
    return tuple(place.like(jnp.full(s, v, jnp.float32), q_BTKGH) for s, v in zip(shapes, (MASKED, 0.0, 0.0)))  # type: ignore


def _logits(q_BTKGH, k_BSKH, scale: float, softcap: float | None):
    """Logits in f32, and their slope with respect to scale * q k."""
    x_BKGTS = _dot("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH) * scale
    if softcap is None:
        return x_BKGTS, 1.0
    y_BKGTS = jnp.tanh(x_BKGTS / softcap)
    return softcap * y_BKGTS, 1.0 - y_BKGTS * y_BKGTS


def _dot(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _rows(x_BKGT: jax.Array) -> jax.Array:
    return x_BKGT.transpose(0, 3, 1, 2)[..., None]


def _part(x: jax.Array, r: Range, axis: int) -> jax.Array:
    return jax.lax.slice_in_dim(x, *r, axis=axis)


def _put(x: jax.Array, part: jax.Array, r: Range, axis: int) -> jax.Array:
    return part if part.shape == x.shape else jax.lax.dynamic_update_slice_in_dim(x, part, r[0], axis)
