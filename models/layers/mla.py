"""Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434, section 2.1).

Keys and values are up-projections of one latent, which is all that decoding remembers besides a rotary key. With a
cache the up-projections are absorbed into queries and outputs, so that attention runs on latents as on one shared head.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.models.cache import Latents
from pretrain.models.config import MlaConfig
from pretrain.models.init import Init, weight
from pretrain.models.layers.attention import mix, write
from pretrain.models.layers.norms import Norm
from pretrain.models.layers.positions import Table, apart, rotate
from pretrain.models.layers.rows import Rows
from pretrain.sharding import place

LATENT = ("batch", "length", None)
HEADS = ("batch", "length", "kv_heads", "head_dim")
SHARED_QUERY = ("batch", "length", None, "kv_heads", "head_dim")
SHARED_KEY = ("batch", "length", None, "head_dim")


class LatentAttention(nnx.Module):
    def __init__(self, config: MlaConfig, d_model: int, init: Init):
        c, embed, heads = config, ("embed", d_model), ("kv_heads", config.heads)
        latent, rotary = (None, c.kv_rank), (None, c.rope_dim)
        queries = (None, c.query_rank or d_model)
        read_queries, read_latent = ("latent", c.query_rank) if c.query_rank else embed, ("latent", c.kv_rank)
        self.config = config
        self.query_down = init.matrix(embed, queries) if c.query_rank else None
        self.query_norm = Norm(c.norm, init, queries) if c.query_rank else None
        self.query = init.matrix(read_queries, heads, ("head_dim", c.nope_dim + c.rope_dim))
        self.latent_down = init.matrix(embed, latent)
        self.latent_norm = Norm(c.norm, init, latent)
        self.rotary_key = init.matrix(embed, rotary)
        self.key = init.matrix(read_latent, heads, ("head_dim", c.nope_dim))
        self.value = init.matrix(read_latent, heads, ("head_dim", c.value_dim))
        self.out = init.matrix(heads, ("head_dim", c.value_dim), embed, inputs=2, residual=True)
        self.query_down_bias = init.vector(0.0, queries) if c.bias and c.query_rank else None
        self.latent_bias = init.vector(0.0, latent) if c.bias else None
        self.rotary_bias = init.vector(0.0, rotary) if c.bias else None
        self.out_bias = init.vector(0.0, ("features", d_model)) if c.bias else None

    def __call__(self, x_BTD: jax.Array, rows: Rows, cache: Latents | None = None):
        """Returns (y_BTD, cache)."""
        c, dtype = self.config, x_BTD.dtype
        x_BTD = place.constrain(x_BTD, "batch", "length", "features")
        latent_BSR = self.latent_norm(_down(x_BTD, self.latent_down, self.latent_bias))
        table = rows.ropes[c.rotary]
        q_BTKN, q_BTKP, rotary_BSP = self._turned(self._queries(x_BTD), x_BTD, table, cut_maps=cache is None)
        latent_BSR, rotary_BSP = checkpoint_name(latent_BSR, "value"), checkpoint_name(rotary_BSP, "key")
        if cache is not None:
            cache = Latents(
                latents_BSR=write(cache.latents_BSR, latent_BSR, rows.filled, 1),
                rotary_BSH=write(cache.rotary_BSH, rotary_BSP, rows.filled, 1),
            )
        if cache is None or rows.start is None:  # in the first tokens the latents are wider than the heads
            o_BTKV = self._spelled_out(q_BTKN, q_BTKP, latent_BSR, rotary_BSP, rows)
        else:
            o_BTKV = self._absorbed(q_BTKN, q_BTKP, cache, rows)
        o_BTKV = checkpoint_name(o_BTKV, "attention")
        y_BTD = place.project(o_BTKV, weight(self.out, dtype), "batch", "sequence", "features", contract=2)
        if self.out_bias is not None:
            y_BTD = y_BTD + weight(self.out_bias, dtype)
        return checkpoint_name(y_BTD, "attention_out"), cache

    def _turned(self, queries_BTR: jax.Array, x_BTD: jax.Array, table: Table, cut_maps: bool):
        """(q_BTKN, q_BTKP, rotary_BSP). `cut_maps`: rather than their results, which are larger with many tokens."""
        c, dtype, neighbours = self.config, x_BTD.dtype, self.config.position.interleaved
        query, key = weight(self.query, dtype), weight(self.rotary_key, dtype)
        bias = None if self.rotary_bias is None else weight(self.rotary_bias, dtype)
        if cut_maps:
            plain, rotary = query[..., : c.nope_dim], query[..., c.nope_dim :]
            if neighbours:
                rotary, key = apart(rotary, table), apart(key, table)
                bias, neighbours = None if bias is None else apart(bias, table), False
            q_BTKN, q_BTKP = (place.project(queries_BTR, w, *HEADS) for w in (plain, rotary))
        else:
            q_BTKH = place.project(queries_BTR, query, *HEADS)
            q_BTKN, q_BTKP = q_BTKH[..., : c.nope_dim], q_BTKH[..., c.nope_dim :]
        rotary_BSP = place.project(x_BTD, key, *LATENT)
        rotary_BSP = rotary_BSP if bias is None else rotary_BSP + bias
        return q_BTKN, rotate(q_BTKP, table, neighbours), rotate(rotary_BSP, table, neighbours)

    def fuse(self) -> None:
        """Nothing to join: the maps read different things."""

    def _queries(self, x_BTD: jax.Array) -> jax.Array:
        if self.query_down is None:
            return x_BTD
        return self.query_norm(_down(x_BTD, self.query_down, self.query_down_bias))

    @property
    def _scale(self) -> float:
        c = self.config
        return (c.nope_dim + c.rope_dim) ** -0.5 if c.scale is None else c.scale

    def _spelled_out(self, q_BTKN, q_BTKP, latent_BSR, rotary_BSP, rows: Rows) -> jax.Array:
        """Every head with keys and values of its own."""
        dtype = latent_BSR.dtype
        k_BSKN = place.project(latent_BSR, weight(self.key, dtype), *HEADS)
        v_BSKV = place.project(latent_BSR, weight(self.value, dtype), *HEADS)
        shared_BSKP = jnp.broadcast_to(rotary_BSP[:, :, None], (*k_BSKN.shape[:3], rotary_BSP.shape[-1]))
        k_BSKH = jnp.concatenate([k_BSKN, place.constrain(shared_BSKP, *HEADS)], axis=-1)
        q_BTKGH = checkpoint_name(jnp.concatenate([q_BTKN, q_BTKP], axis=-1)[:, :, :, None], "query")
        rows = rows.without_cache()
        return mix(q_BTKGH, k_BSKH, v_BSKV, rows, rows.seen(False, None), self._scale, self.config.causal)[:, :, :, 0]

    def _absorbed(self, q_BTKN, q_BTKP, cache: Latents, rows: Rows) -> jax.Array:
        """All heads are queries of one head, whose keys are latent and rotary key, and whose values are the latent."""
        dtype = q_BTKN.dtype
        q_BTKR = jnp.einsum("BTKN,RKN->BTKR", q_BTKN, weight(self.key, dtype))
        q_BT1KH = jnp.concatenate([q_BTKR, q_BTKP], axis=-1)[:, :, None]
        latents_BSR = cache.latents_BSR.astype(dtype)
        k_BS1H = jnp.concatenate([latents_BSR, cache.rotary_BSH.astype(dtype)], axis=-1)[:, :, None]
        o_BT1KR = mix(
            q_BT1KH,
            k_BS1H,
            latents_BSR[:, :, None],
            rows,
            rows.seen(False, None),
            self._scale,
            self.config.causal,
            query_axes=SHARED_QUERY,
            key_axes=SHARED_KEY,
        )
        return jnp.einsum("BTKR,RKV->BTKV", o_BT1KR[:, :, 0], weight(self.value, dtype))


def _down(x_BTD: jax.Array, kernel: nnx.Param, bias: nnx.Param | None) -> jax.Array:
    y_BTR = place.project(x_BTD, weight(kernel, x_BTD.dtype), *LATENT)
    return y_BTR if bias is None else y_BTR + weight(bias, y_BTR.dtype)
