"""Attention itself: queries, keys and values in, mixed values out. Written for the arrays of one device."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pretrain.sharding import place

Implementation = Literal["auto", "reference", "blockwise", "splash", "cudnn"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["q_segments_BT", "kv_segments_BS", "q_index_T", "kv_index_S", "kv_prefix_BS", "part"],
    meta_fields=["causal", "window", "parts"],
)
@dataclass(frozen=True, kw_only=True)
class Mask:
    """Which keys a query sees: those of its segment, not ahead of it (`causal`), less than `window` away.

    Segment 0 is padding: it sees nothing and nobody sees it. Both segment arrays or none. `kv_prefix_BS` marks keys
    that causality does not hide.
    An index is a place in the row or a slot of the cache; by default they count from 0, queries from the beginning of
    the `part` of the row that they are, one of `parts` equal ones.
    """

    q_segments_BT: jax.Array | None = None
    kv_segments_BS: jax.Array | None = None
    q_index_T: jax.Array | None = None
    kv_index_S: jax.Array | None = None
    kv_prefix_BS: jax.Array | None = None
    causal: bool = True
    window: int | None = None
    parts: int = 1
    part: jax.Array | None = None
    """None: the queries are the whole row."""

    @property
    def counted(self) -> bool:
        """Whether queries and keys count from 0."""
        return self.q_index_T is None and self.kv_index_S is None and self.part is None

    def visible(self, q_length: int, kv_length: int) -> jax.Array | None:
        """visible_BTS or, without segments, visible_1TS; None where every query sees every key."""
        seen = []
        if self.causal or self.window is not None:
            first = 0 if self.part is None else self.part * q_length
            q_T1 = (first + jnp.arange(q_length) if self.q_index_T is None else self.q_index_T)[:, None]
            kv_1S = (jnp.arange(kv_length) if self.kv_index_S is None else self.kv_index_S)[None, :]
            if self.causal:
                past_1TS = (kv_1S <= q_T1)[None]
                seen.append(past_1TS if self.kv_prefix_BS is None else past_1TS | (self.kv_prefix_BS != 0)[:, None])
            if self.window is not None:
                seen.append((jnp.abs(kv_1S - q_T1) < self.window)[None])
        if (self.q_segments_BT is None) != (self.kv_segments_BS is None):
            raise ValueError("found segments of queries or of keys only; a mask takes both or none")
        if self.q_segments_BT is not None:
            q_BT1, kv_B1S = self.q_segments_BT[:, :, None], self.kv_segments_BS[:, None, :]
            seen.append((q_BT1 == kv_B1S) & (q_BT1 != 0))
        return None if not seen else jax.tree.reduce(jnp.logical_and, seen)


def attention(
    q_BTKGH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKV: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None = None,
    bias_KGTS: jax.Array | None = None,
    sinks_KG: jax.Array | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:
    """o_BTKGV, softmax(softcap * tanh(scale * q k / softcap) + bias) v over the visible keys; 0 where a query sees no
    key.

    `softcap` as in Gemma 2 (arXiv:2408.00118, section 2). `sinks`: a logit more in each softmax, whose weight is lost
    (gpt-oss). "auto" picks by platform and shape, never by values.
    """
    from pretrain.models.layers.blockwise import blockwise_attention

    plain = bias_KGTS is None and sinks_KG is None and k_BSKH.shape == v_BSKV.shape
    if implementation == "auto":
        arrays = (q_BTKGH, k_BSKH, v_BSKV)
        implementation = _fastest(place.platform(), mask, *arrays, bias_KGTS is None, plain, plain and softcap is None)
    if implementation == "blockwise":
        if not plain:
            raise ValueError("found biases, sinks or values of another width; blocks have none: use the reference")
        return blockwise_attention(q_BTKGH, k_BSKH, v_BSKV, mask=mask, scale=scale, softcap=softcap)
    if implementation == "splash":
        from pretrain.models.layers.splash import splash_attention

        if bias_KGTS is not None:
            raise ValueError("found biases; the kernel has none: use the reference")
        options = {"softcap": softcap, "sinks_KG": sinks_KG, "interpret": place.platform() != "tpu"}
        return splash_attention(q_BTKGH, k_BSKH, v_BSKV, mask=mask, scale=scale, **options)
    if implementation == "cudnn":
        from pretrain.models.layers.cudnn import cudnn_attention

        if bias_KGTS is not None or sinks_KG is not None or softcap is not None:
            raise ValueError("found biases, sinks or a softcap; cuDNN's attention has none: use the reference")
        simulate = place.platform() != "gpu"
        return cudnn_attention(q_BTKGH, k_BSKH, v_BSKV, mask=mask, scale=scale, simulate=simulate)
    extra = {"bias_KGTS": bias_KGTS, "sinks_KG": sinks_KG}
    return reference_attention(q_BTKGH, k_BSKH, v_BSKV, mask=mask, scale=scale, softcap=softcap, **extra)


def _fastest(
    platform: str, mask: Mask, q_BTKGH, k_BSKH, v_BSKV, unbiased: bool, plain: bool, bare: bool
) -> Implementation:
    """`plain`: no biases, no sinks, values as wide as keys; `bare`: and no softcap."""
    from pretrain.models.layers import blockwise

    if platform == "cpu" and plain and blockwise.fits(mask):
        return "blockwise"
    if platform == "tpu" and unbiased:
        from pretrain.models.layers import splash

        return "splash" if splash.fits(mask, q_BTKGH, k_BSKH, v_BSKV) else "reference"
    if platform == "gpu" and bare:
        from pretrain.models.layers import cudnn

        return "cudnn" if cudnn.fits(mask, q_BTKGH, k_BSKH, v_BSKV) else "reference"
    return "reference"


def reference_attention(
    q_BTKGH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKV: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None = None,
    bias_KGTS: jax.Array | None = None,
    sinks_KG: jax.Array | None = None,
) -> jax.Array:
    """The definition, logits and softmax in f32: judge of every other implementation, and what decoding uses."""
    logits_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        logits_BKGTS = softcap * jnp.tanh(logits_BKGTS / softcap)
    if bias_KGTS is not None:
        logits_BKGTS = logits_BKGTS + bias_KGTS
    visible = mask.visible(q_BTKGH.shape[1], k_BSKH.shape[1])
    if visible is not None:
        visible = visible[:, None, None]
        # Finite, so that a row which sees nothing stays finite backwards too; the second select makes it 0.
        logits_BKGTS = jnp.where(visible, logits_BKGTS, jnp.finfo(jnp.float32).min)
    if sinks_KG is None:
        weights_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1)
    else:
        sinks = jnp.broadcast_to(sinks_KG[:, :, None, None], (*logits_BKGTS.shape[:-1], 1))
        weights_BKGTS = jax.nn.softmax(jnp.concatenate([logits_BKGTS, sinks], axis=-1), axis=-1)[..., :-1]
    if visible is not None:
        weights_BKGTS = jnp.where(visible, weights_BKGTS, 0.0)
    o_BTKGV = jnp.einsum("BKGTS,BSKV->BTKGV", weights_BKGTS.astype(v_BSKV.dtype), v_BSKV)
    return checkpoint_name(o_BTKGV, "attention")
