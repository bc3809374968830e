"""Flash attention on NVIDIA GPUs: cuDNN's, by JAX's public call.

cuDNN is told of causality, and of a causal window where nothing else hides keys; it skips what they hide. Any other
mask becomes a bias that all heads share: 2 T S bytes a row while its layer runs, where the reference keeps logits of
every head in f32. JAX's call takes no segments, and its layout of packed rows is private to JAX.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pretrain.models.layers.kernels import Mask

WIDTH = 128
"""Dimensions of a head that cuDNN knows on every GPU; from Hopper on twice as many."""


def fits(mask: Mask, q_BTKGH: jax.Array, k_BSKH: jax.Array, v_BSKV: jax.Array) -> bool:
    """Whether cuDNN knows these arrays. With a mask of its own it differentiates even lengths only."""
    T, S, H = q_BTKGH.shape[1], k_BSKH.shape[1], q_BTKGH.shape[-1]
    half = all(x.dtype in (jnp.bfloat16, jnp.float16) for x in (q_BTKGH, k_BSKH, v_BSKV))
    masked = T % 2 == S % 2 == 0
    return half and (masked or _told(mask)) and k_BSKH.shape == v_BSKV.shape and H % 8 == 0 and _width() >= H


def cudnn_attention(
    q_BTKGH: jax.Array, k_BSKH: jax.Array, v_BSKV: jax.Array, *, mask: Mask, scale: float, simulate: bool = False
) -> jax.Array:
    """The same as `reference_attention`; raises ValueError where it does not fit.

    `simulate`: the same call computed by XLA, in f32, on any platform: for tests.
    """
    if not fits(mask, q_BTKGH, k_BSKH, v_BSKV):
        shapes = f"queries {q_BTKGH.shape} and values {v_BSKV.shape} of {q_BTKGH.dtype}"
        raise ValueError(
            f"found {shapes}; cuDNN takes bfloat16 or float16, a multiple of 8 up to {_width()} dimensions a head, "
            "values as wide as keys, and, where it is given a mask, even lengths: use the reference"
        )
    B, T, K, G, H = q_BTKGH.shape
    options: dict[str, Any] = {"scale": scale, "is_causal": _causal(mask)}
    visible_B1TS = None
    if not _told(mask):
        visible_BTS = replace(mask, causal=mask.causal and not _causal(mask)).visible(T, k_BSKH.shape[1])
        visible_B1TS = None if visible_BTS is None else visible_BTS[:, None]
    elif mask.window is not None:
        options["local_window_size"] = (mask.window - 1, 0)
    attend, arrays = _named, (q_BTKGH.reshape(B, T, K * G, H), k_BSKH, v_BSKV)
    if simulate:
        attend, arrays = _plain, tuple(x.astype(jnp.float32) for x in arrays)
    o_BTNH = attend(*arrays, visible_B1TS, {**options, "implementation": "xla" if simulate else "cudnn"})
    return _blank(o_BTNH.reshape(q_BTKGH.shape).astype(q_BTKGH.dtype), mask, k_BSKH.shape[1])


def _causal(mask: Mask) -> bool:
    """Whether causality is that of rows counted from 0, all of it."""
    return mask.causal and mask.counted and mask.kv_prefix_BS is None


def _told(mask: Mask) -> bool:
    """Whether causality and a window say it all."""
    alone = mask.q_segments_BT is None and mask.counted
    return alone and mask.kv_prefix_BS is None and (mask.causal or mask.window is None)


def _width() -> int:
    """As JAX decides: by the GPU of this process, not by one that is planned."""
    if jax.default_backend() != "gpu":
        return WIDTH
    return WIDTH * (1 + (float(jax.local_devices()[0].compute_capability) >= 9))


def _blank(o_BTKGH: jax.Array, mask: Mask, keys: int) -> jax.Array:
    """0 for queries that see no key; cuDNN gives them a mean of values."""
    if _told(mask):
        return o_BTKGH
    visible_BTS = mask.visible(o_BTKGH.shape[1], keys)
    return o_BTKGH if visible_BTS is None else jnp.where(visible_BTS.any(-1)[:, :, None, None, None], o_BTKGH, 0)


def _plain(q_BTNH, k_BSKH, v_BSKH, visible_B1TS, options: dict[str, Any]) -> jax.Array:
    return jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, mask=visible_B1TS, **options)


def _named(q_BTNH, k_BSKH, v_BSKH, visible_B1TS, options: dict[str, Any]) -> jax.Array:
    """`_plain` whose output and softmax statistics bear a name where the backward pass takes them from: a remat policy
    that saves them spares the forward pass."""

    @jax.custom_vjp
    def attend(q, k, v, visible):
        return _plain(q, k, v, visible, options)

    def forward(q, k, v, visible):
        o, pullback = jax.vjp(partial(_plain, visible_B1TS=visible, options=options), q, k, v)
        kept = checkpoint_name(o, "attention")

        def name(leaf):
            if leaf is o:
                return kept
            return checkpoint_name(leaf, "attention") if leaf.ndim == 3 else leaf  # statistics of each head and query

        return kept, jax.tree.map(name, pullback)

    def backward(pullback, do):
        return *pullback(do), None

    attend.defvjp(forward, backward)
    return attend(q_BTNH, k_BSKH, v_BSKH, visible_B1TS)
