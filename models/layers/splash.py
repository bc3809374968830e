"""Flash attention on TPU: JAX's splash kernel for the masks of this project.

Only blocks of logits that somebody sees are computed, forward and backward, and none of them leaves the chip's fast
memory (FlashAttention-2, Dao 2023, arXiv:2307.08691, with a mask known while tracing).
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from pretrain.models.layers.kernels import Mask
from pretrain.sharding import place

BLOCKS = (1024, 512, 256, 128)
"""Queries and keys of a block: the largest that divides the length. 128 is the width of a vector register."""


def fits(mask: Mask, q_BTKGH: jax.Array, k_BSKH: jax.Array, v_BSKV: jax.Array) -> bool:
    """Whether the kernel knows this mask and these shapes."""
    T, S, H = q_BTKGH.shape[1], k_BSKH.shape[1], q_BTKGH.shape[-1]
    counted = mask.q_index_T is None and mask.kv_index_S is None and mask.kv_prefix_BS is None
    return counted and T % BLOCKS[-1] == 0 and S % BLOCKS[-1] == 0 and H % 64 == 0 and v_BSKV.shape[-1] % 64 == 0


def splash_attention(
    q_BTKGH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKV: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None = None,
    sinks_KG: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """The same as `reference_attention`; raises ValueError where it does not fit.

    `interpret`: run by JAX on any platform, for tests.
    """
    if not fits(mask, q_BTKGH, k_BSKH, v_BSKV):
        raise ValueError(f"found {mask} over queries {q_BTKGH.shape}, the kernel knows no such mask: use the reference")
    if place.schedule().kernels == "tokamax" and mask.part is None:
        kernel, kind = _tokamax(mask, q_BTKGH, k_BSKH, softcap, interpret)
    else:
        kernel, kind = _kernel(mask, q_BTKGH, k_BSKH, softcap, interpret), splash.SegmentIds
    if mask.part is not None:
        kernel = _of_part(kernel, mask.part, mask.parts)
    heads = jax.vmap(kernel, in_axes=(0, 0, 0, None, None if sinks_KG is None else 0))
    segments = _segments(mask, kind)
    rows = jax.vmap(heads, in_axes=(0, 0, 0, None if segments is None else 0, None))
    return _there(mask, _by_token(rows(*_by_head(q_BTKGH, k_BSKH, v_BSKV, scale), segments, sinks_KG)))


def mix(
    q_BTKGH: jax.Array, k_BSKH: jax.Array, v_BSKV: jax.Array, *, mask: Mask, scale: float, softcap: float | None
) -> tuple[jax.Array, jax.Array]:
    """(o_BTKGV in f32 over these keys alone, lse_BTKG, the logarithm of its softmax's denominator)."""
    kernel = _kernel(mask, q_BTKGH, k_BSKH, softcap, place.platform() != "tpu")

    def head(q_GTH, k_SH, v_SV, segments):
        options = kernel.kwargs | {"save_residuals": True, "residual_checkpoint_name": None}
        o_GTV, (lse_GT,) = splash._splash_attention_forward(
            kernel.fwd_mask_info, q_GTH, k_SH, v_SV, segments, None, **options
        )
        return o_GTV.astype(jnp.float32), lse_GT

    o_BKGTV, lse_BKGT = _rows(head, mask)(*_by_head(q_BTKGH, k_BSKH, v_BSKV, scale), _segments(mask))
    return _there(mask, _by_token(o_BKGTV)), lse_BKGT.transpose(0, 3, 1, 2)


def unmix(
    q_BTKGH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKV: jax.Array,
    o_BTKGV: jax.Array,
    lse_BTKG: jax.Array,
    do_BTKGV: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq_BTKGH, dk_BSKH, dv_BSKV) in f32: what these keys, a part of those in `o` and `lse`, add to the gradients."""
    kernel = _kernel(mask, q_BTKGH, k_BSKH, softcap, place.platform() != "tpu")

    def head(q_GTH, k_SH, v_SV, segments, o_GTV, lse_GT, do_GTV):
        infos = (kernel.dq_mask_info, kernel.dkv_mask_info)
        residuals = (q_GTH, k_SH, v_SV, segments, None, o_GTV, lse_GT, *infos)
        return splash._splash_attention_bwd(**kernel.kwargs, res=residuals, do=do_GTV)[3:6]

    given = _by_head(q_BTKGH, k_BSKH, v_BSKV, scale)
    o_BKGTV, do_BKGTV = (x.transpose(0, 2, 3, 1, 4) for x in (o_BTKGV, _there(mask, do_BTKGV)))
    rows = _rows(head, mask, 3)
    dq_BKGTH, *dkv = rows(*given, _segments(mask), o_BKGTV, lse_BTKG.transpose(0, 2, 3, 1), do_BKGTV)
    dk_BSKH, dv_BSKV = (x.swapaxes(1, 2).astype(jnp.float32) for x in dkv)
    return _by_token(dq_BKGTH).astype(jnp.float32) * scale, dk_BSKH, dv_BSKV


def _rows(head, mask: Mask, more: int = 0):
    """`head` for all heads of keys and values of all rows; segments belong to rows."""
    heads = jax.vmap(head, in_axes=(0, 0, 0, None, *(0,) * more))
    return jax.vmap(heads, in_axes=(0, 0, 0, None if mask.q_segments_BT is None else 0, *(0,) * more))


def _kernel(mask: Mask, q_BTKGH, k_BSKH, softcap: float | None, interpret: bool) -> splash.SplashAttentionKernel:
    """Of one head of keys and values and the queries that share it."""
    (_, T, _, G, _), S = q_BTKGH.shape, k_BSKH.shape[1]
    return splash.make_splash_mqa(
        masks.MultiHeadMask([_static(mask, T * mask.parts, S)] * G),
        block_sizes=_blocks(T, S),
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name="attention",
        interpret=interpret,
        head_shards=1,
        q_seq_shards=mask.parts,
    )


def _tokamax(mask: Mask, q_BTKGH, k_BSKH, softcap: float | None, interpret: bool):
    """(the same from tokamax, which makes all gradients in one kernel, its segments)."""
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]
    q, kv = (next(b for b in BLOCKS if n % b == 0) for n in (T, S))
    config = splash_attention_kernel.SplashConfig(
        block_q=q,
        block_kv=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        dq_reduction_steps=3 if S // kv > 3 else None,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    kernel = splash_attention_kernel.make_splash_mqa(
        _static(mask, T, S, splash_attention_mask), config=config, q_seq_shards=1
    )
    return kernel, splash_attention_kernel.SegmentIds


def _by_head(q_BTKGH, k_BSKH, v_BSKV, scale: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    q_BKGTH = (q_BTKGH * scale).astype(q_BTKGH.dtype).transpose(0, 2, 3, 1, 4)
    return q_BKGTH, k_BSKH.swapaxes(1, 2), v_BSKV.swapaxes(1, 2)


def _by_token(x_BKGTV: jax.Array) -> jax.Array:
    return x_BKGTV.transpose(0, 3, 1, 2, 4)


def _segments(mask: Mask, kind=splash.SegmentIds):
    q_segments_BT, kv_segments_BS = mask.q_segments_BT, mask.kv_segments_BS
    if q_segments_BT is None or kv_segments_BS is None:
        return None
    return kind(q=q_segments_BT, kv=kv_segments_BS)


def _there(mask: Mask, x_BTKGV: jax.Array) -> jax.Array:
    """0 for padding, which sees padding in the kernel."""
    if mask.q_segments_BT is None:
        return x_BTKGV
    return jnp.where(mask.q_segments_BT[:, :, None, None, None] != 0, x_BTKGV, 0)


def _of_part(kernel: splash.SplashAttentionKernel, part: jax.Array, parts: int) -> splash.SplashAttentionKernel:
    """The kernel of one part of the queries: its blocks of the mask, as `manual_sharding_spec` would deal them."""

    def own(x: jax.Array | None, axis: int) -> jax.Array | None:
        if x is None:
            return None
        size = x.shape[axis] // parts
        return jax.lax.dynamic_slice_in_dim(x, part * size, size, axis)

    def of(info):
        if info is None:
            return None
        blocks = {name: own(getattr(info, name), 1) for name in ("data_next", "mask_next", "block_mask")}
        return info._replace(**blocks, q_sequence=own(info.q_sequence, 0))

    infos = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
    return splash.SplashAttentionKernel(*(of(info) for info in infos), **kernel.kwargs)


def _static(mask: Mask, T: int, S: int, masks=masks):
    if mask.window is not None:
        ahead = 0 if mask.causal else mask.window - 1
        return masks.LocalMask((T, S), (mask.window - 1, ahead), offset=0)
    return masks.CausalMask((T, S)) if mask.causal else masks.FullMask((T, S))


def _blocks(T: int, S: int) -> splash.BlockSizes:
    q, kv = (next(b for b in BLOCKS if n % b == 0) for n in (T, S))
    return splash.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
