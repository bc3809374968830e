"""Flash attention on TPU: JAX's splash kernel for the masks of this project.

Only blocks of logits that somebody sees are computed, forward and backward, and none of them leaves the chip's fast
memory (FlashAttention-2, Dao 2023, arXiv:2307.08691, with a mask known while tracing).
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from pretrain.models.layers.kernels import Mask

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
    (_, T, _, G, _), S = q_BTKGH.shape, k_BSKH.shape[1]
    kernel = splash.make_splash_mqa(
        masks.MultiHeadMask([_static(mask, T * mask.parts, S)] * G),
        block_sizes=_blocks(T, S),
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name="attention",
        interpret=interpret,
        head_shards=1,
        q_seq_shards=mask.parts,
    )
    if mask.part is not None:
        kernel = _of_part(kernel, mask.part, mask.parts)
    q_BKGTH = (q_BTKGH * scale).astype(q_BTKGH.dtype).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSV = k_BSKH.swapaxes(1, 2), v_BSKV.swapaxes(1, 2)
    q_segments_BT, kv_segments_BS = mask.q_segments_BT, mask.kv_segments_BS
    segments = None
    if q_segments_BT is not None and kv_segments_BS is not None:
        segments = splash.SegmentIds(q=q_segments_BT, kv=kv_segments_BS)
    heads = jax.vmap(kernel, in_axes=(0, 0, 0, None, None if sinks_KG is None else 0))
    rows = jax.vmap(heads, in_axes=(0, 0, 0, None if segments is None else 0, None))
    o_BTKGV = rows(q_BKGTH, k_BKSH, v_BKSV, segments, sinks_KG).transpose(0, 3, 1, 2, 4)
    if q_segments_BT is None:
        return o_BTKGV
    return jnp.where(q_segments_BT[:, :, None, None, None] != 0, o_BTKGV, 0)  # padding sees padding in the kernel


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


def _static(mask: Mask, T: int, S: int) -> masks.Mask:
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
