"""Attention of rows that several devices share: keys and values go round, no device ever holds all of them.

Ring attention (Liu et al. 2023, arXiv:2310.01889): in each of C turns a device mixes the keys it has just been handed
into running sums, and hands them on. Where no token sees a later one, rows are dealt in a zigzag (as in Llama 3,
arXiv:2407.21783, section 3.3.2): of 2C chunks device i holds i and 2C - 1 - i, so that every device has as much to do
in every turn. The backward pass goes round once more, the gradients of keys and values travelling with them.

T = tokens of one device, S = keys of one device, C = devices.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pretrain.models.layers.kernels import Mask
from pretrain.sharding import place

QUERIES = 1024
"""Of a block: only so many have logits at a time."""
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


def ring_attention(
    q_BTKGH,
    k_BSKH,
    v_BSKV,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None = None,
    sinks_KG: jax.Array | None = None,
    dealt: bool,
    implementation: Literal["auto", "reference", "splash"] = "auto",
) -> jax.Array:
    """o_BTKGV: `reference_attention` over the keys of all devices, inside `place.local`.

    `mask`: of this device's tokens, without indices. `dealt`: tokens lie as `zigzag` deals them. "auto" takes the
    flash kernel on a TPU where it knows the mask of every turn; otherwise a block of queries at a time meets the keys.
    """
    knows = implementation == "splash" or (implementation == "auto" and place.platform() == "tpu")
    turn = _Turn(
        scale=scale, softcap=softcap, dealt=dealt, flash=knows and _flash(mask, q_BTKGH, k_BSKH, v_BSKV, dealt)
    )
    if implementation == "splash" and not turn.flash:
        raise ValueError(f"found {mask}, dealt {dealt}, for which the kernel has no turns: use the reference")
    sinks_KG = None if sinks_KG is None else place.like(sinks_KG, q_BTKGH)
    return _ring(q_BTKGH, k_BSKH, v_BSKV, sinks_KG, mask, turn)


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """How queries and keys meet that are together now."""

    scale: float
    softcap: float | None
    dealt: bool
    flash: bool


def _flash(mask: Mask, q_BTKGH: jax.Array, k_BSKH: jax.Array, v_BSKV: jax.Array, dealt: bool) -> bool:
    """Whether the mask of a turn is always causal or none: of whole rows without a window or a prefix."""
    from pretrain.models.layers import splash

    half = (x[:, : x.shape[1] // 2] if dealt else x for x in (q_BTKGH, k_BSKH, v_BSKV))
    return mask.window is None and mask.causal == dealt and splash.fits(mask, *half)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _ring(q_BTKGH, k_BSKH, v_BSKV, sinks_KG, mask: Mask, turn: _Turn):
    return _forward(q_BTKGH, k_BSKH, v_BSKV, sinks_KG, mask, turn)[0]


def _forward(q_BTKGH, k_BSKH, v_BSKV, sinks_KG, mask: Mask, turn: _Turn):
    C, axis, me = _where()
    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]

    def met(sums, keys, owner, q: Range, s: Range):
        """(o, logarithm of the softmax's denominator) with these queries' part of these keys in it."""
        mixed_BTKGV, lse_BTKG = _mix(
            _part(q_BTKGH, q), *_of(keys, s), _pair(mask, keys, me, owner, q, s, T, S, turn), turn
        )
        before_BTKGV, before_BTKG = (_part(x, q) for x in sums)
        after_BTKG = jnp.logaddexp(before_BTKG, lse_BTKG)
        old, new = (jnp.exp(x - after_BTKG)[..., None] for x in (before_BTKG, lse_BTKG))
        parts = (before_BTKGV * old + mixed_BTKGV * new, after_BTKG)
        return tuple(_put(x, y, q) for x, y in zip(sums, parts))

    keys = (k_BSKH, v_BSKV, mask.kv_segments_BS, mask.kv_prefix_BS)
    sums = _mix(q_BTKGH, k_BSKH, v_BSKV, _pair(mask, keys, me, me, (0, T), (0, S), T, S, turn), turn)

    def step(carry, n):
        sums, keys = carry
        keys = _hand_on(keys, axis, C)
        return (_some(met, sums, keys, (me - n) % C, me, T, S, turn.dealt), keys), None

    ((o_BTKGV, lse_BTKG), _), _ = jax.lax.scan(step, (sums, keys), jnp.arange(1, C))
    if sinks_KG is not None:  # a logit more in the softmax makes every weight smaller by one factor
        with_BTKG = jnp.logaddexp(lse_BTKG, sinks_KG)
        o_BTKGV, lse_BTKG = o_BTKGV * jnp.exp(lse_BTKG - with_BTKG)[..., None], with_BTKG
    # Named where the backward pass takes them from: a remat policy that saves them spares going round again.
    o_BTKGV = checkpoint_name(o_BTKGV.astype(q_BTKGH.dtype), "attention")
    lse_BTKG = checkpoint_name(lse_BTKG, "attention")
    return o_BTKGV, (q_BTKGH, k_BSKH, v_BSKV, sinks_KG, mask, o_BTKGV, lse_BTKG)


def _backward(turn: _Turn, residuals, do_BTKGV):
    q_BTKGH, k_BSKH, v_BSKV, sinks_KG, mask, o_BTKGV, lse_BTKG = residuals
    C, axis, me = _where()
    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]

    def met(sums, keys, owner, q: Range, s: Range):
        """The gradients with what these queries and these keys add to them."""
        own = (_part(x, q) for x in (q_BTKGH, o_BTKGV, do_BTKGV, lse_BTKG))
        added = _unmix(*own, *_of(keys, s), _pair(mask, keys, me, owner, q, s, T, S, turn), turn)
        return tuple(_put(x, _part(x, r) + y, r) for x, y, r in zip(sums, added, (q, s, s)))

    keys = (k_BSKH, v_BSKV, mask.kv_segments_BS, mask.kv_prefix_BS)
    zeros = tuple(place.like(jnp.zeros(x.shape, jnp.float32), q_BTKGH, do_BTKGV) for x in (q_BTKGH, k_BSKH, v_BSKV))
    sums = met(zeros, keys, me, (0, T), (0, S))

    def step(carry, n):
        (dq, dk, dv), keys = carry
        dk, dv, keys = _hand_on((dk, dv, keys), axis, C)
        return (_some(met, (dq, dk, dv), keys, (me - n) % C, me, T, S, turn.dealt), keys), None

    ((dq, dk, dv), _), _ = jax.lax.scan(step, (sums, keys), jnp.arange(1, C))
    dk, dv = _hand_on((dk, dv), axis, C)  # home
    dsinks_KG = None
    if sinks_KG is not None:
        lost_BTKG = jnp.exp(sinks_KG - lse_BTKG) * _delta(o_BTKGV, do_BTKGV)
        dsinks_KG = -jnp.sum(lost_BTKG, axis=(0, 1)).astype(sinks_KG.dtype)
    return dq.astype(q_BTKGH.dtype), dk.astype(k_BSKH.dtype), dv.astype(v_BSKV.dtype), dsinks_KG, None


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


def _pair(mask: Mask, keys, me, owner, q: Range, s: Range, T: int, S: int, turn: _Turn) -> Mask:
    """Which of these keys these queries see. The kernel's is known while tracing: of a device's own keys causal."""
    segments_BS, prefix_BS = (None if x is None else _part(x, s) for x in keys[2:])
    segments_BT = None if mask.q_segments_BT is None else _part(mask.q_segments_BT, q)
    part = replace(mask, q_segments_BT=segments_BT, kv_segments_BS=segments_BS, kv_prefix_BS=prefix_BS)
    if turn.flash:
        return replace(part, causal=mask.causal and owner is me)
    dealt = turn.dealt
    return replace(part, q_index_T=index(me, T, dealt)[slice(*q)], kv_index_S=index(owner, S, dealt)[slice(*s)])


def _mix(q_BTKGH, k_BSKH, v_BSKV, mask: Mask, turn: _Turn) -> tuple[jax.Array, jax.Array]:
    """(o_BTKGV in f32 over these keys alone, the logarithm of its softmax's denominator)."""
    if turn.flash:
        from pretrain.models.layers import splash

        return splash.mix(q_BTKGH, k_BSKH, v_BSKV, mask=mask, scale=turn.scale, softcap=turn.softcap)

    def block(_, mask: Mask, q_BtKGH):
        x_BKGts, _ = _logits(q_BtKGH, k_BSKH, turn)
        visible = _visible(mask, q_BtKGH, k_BSKH)
        max_BKGt = jnp.max(jnp.where(visible, x_BKGts, MASKED), axis=-1)
        p_BKGts = jnp.where(visible, jnp.exp(x_BKGts - max_BKGt[..., None]), 0.0)
        sum_BKGt = jnp.maximum(jnp.sum(p_BKGts, axis=-1), 1.0)  # the largest is 1, unless nothing is seen: then 0 / 1
        o_BtKGV = _dot("BKGTS,BSKV->BTKGV", p_BKGts.astype(v_BSKV.dtype), v_BSKV)
        return None, (o_BtKGV / _by_token(sum_BKGt)[..., None], _by_token(max_BKGt + jnp.log(sum_BKGt)))

    return _by_block(block, None, mask, q_BTKGH)[1]


def _unmix(q_BTKGH, o_BTKGV, do_BTKGV, lse_BTKG, k_BSKH, v_BSKV, mask: Mask, turn: _Turn):
    """(dq_BTKGH, dk_BSKH, dv_BSKV) in f32 of these keys, from the softmax over all."""
    if turn.flash:
        from pretrain.models.layers import splash

        given = (q_BTKGH, k_BSKH, v_BSKV, o_BTKGV, lse_BTKG, do_BTKGV)
        return splash.unmix(*given, mask=mask, scale=turn.scale, softcap=turn.softcap)

    def block(sums, mask: Mask, q_BtKGH, do_BtKGV, delta_BtKG, lse_BtKG):
        x_BKGts, slope = _logits(q_BtKGH, k_BSKH, turn)
        visible = _visible(mask, q_BtKGH, k_BSKH)
        p_BKGts = jnp.where(visible, jnp.exp(x_BKGts - _by_head(lse_BtKG)), 0.0)
        dp_BKGts = _dot("BTKGV,BSKV->BKGTS", do_BtKGV, v_BSKV) - _by_head(delta_BtKG)
        dx_BKGts = (p_BKGts * dp_BKGts * (slope * turn.scale)).astype(q_BTKGH.dtype)
        dk_BSKH = sums[0] + _dot("BKGTS,BTKGH->BSKH", dx_BKGts, q_BtKGH)
        dv_BSKV = sums[1] + _dot("BKGTS,BTKGV->BSKV", p_BKGts.astype(v_BSKV.dtype), do_BtKGV)
        return (dk_BSKH, dv_BSKV), (_dot("BKGTS,BSKH->BTKGH", dx_BKGts, k_BSKH),)

    zeros = tuple(place.like(jnp.zeros(x.shape, jnp.float32), q_BTKGH, x, do_BTKGV) for x in (k_BSKH, v_BSKV))
    queries = (q_BTKGH, do_BTKGV, _delta(o_BTKGV, do_BTKGV), lse_BTKG)
    (dk_BSKH, dv_BSKV), (dq_BTKGH,) = _by_block(block, zeros, mask, *queries)
    return dq_BTKGH, dk_BSKH, dv_BSKV


def _by_block(block, carry, mask: Mask, *queries_BT: jax.Array):
    """`block` over all queries, QUERIES at a time: (carry, what it makes of each, in their order)."""
    T = queries_BT[0].shape[1]
    if T % QUERIES or T == QUERIES:
        return block(carry, mask, *queries_BT)

    def cut(x_BT):
        return jnp.moveaxis(x_BT.reshape(x_BT.shape[0], -1, QUERIES, *x_BT.shape[2:]), 1, 0)

    def step(carry, of_block):
        (segments, index), queries = of_block
        return block(carry, replace(mask, q_segments_BT=segments, q_index_T=index), *queries)

    segments_BT = None if mask.q_segments_BT is None else cut(mask.q_segments_BT)
    index_T = None if mask.q_index_T is None else mask.q_index_T.reshape(-1, QUERIES)
    carry, made = jax.lax.scan(step, carry, ((segments_BT, index_T), [cut(x) for x in queries_BT]))
    return carry, tuple(jnp.moveaxis(y, 0, 1).reshape(y.shape[1], T, *y.shape[3:]) for y in made)


def _visible(mask: Mask, q_BTKGH, k_BSKH) -> jax.Array | bool:
    visible_BTS = mask.visible(q_BTKGH.shape[1], k_BSKH.shape[1])
    return True if visible_BTS is None else visible_BTS[:, None, None]


def _logits(q_BTKGH, k_BSKH, turn: _Turn):
    """Logits in f32, and their slope with respect to scale * q k."""
    x_BKGTS = _dot("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH) * turn.scale
    if turn.softcap is None:
        return x_BKGTS, 1.0
    y_BKGTS = jnp.tanh(x_BKGTS / turn.softcap)
    return turn.softcap * y_BKGTS, 1.0 - y_BKGTS * y_BKGTS


def _delta(o_BTKGV, do_BTKGV) -> jax.Array:
    return jnp.sum(o_BTKGV.astype(jnp.float32) * do_BTKGV, axis=-1)


def _dot(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _by_token(x_BKGT: jax.Array) -> jax.Array:
    return x_BKGT.transpose(0, 3, 1, 2)


def _by_head(x_BTKG: jax.Array) -> jax.Array:
    return x_BTKG.transpose(0, 2, 3, 1)[..., None]


def _of(keys, s: Range) -> tuple[jax.Array, jax.Array]:
    return _part(keys[0], s), _part(keys[1], s)


def _part(x: jax.Array, r: Range) -> jax.Array:
    return jax.lax.slice_in_dim(x, *r, axis=1)


def _put(x: jax.Array, part: jax.Array, r: Range) -> jax.Array:
    return part if part.shape == x.shape else jax.lax.dynamic_update_slice_in_dim(x, part, r[0], axis=1)
