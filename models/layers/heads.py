"""From hidden states to logits, and to whatever else is asked of a row."""

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.models.config import HeadConfig, TaskConfig
from pretrain.models.init import Init, weight
from pretrain.models.layers.embed import dropout
from pretrain.models.layers.mlp import ACTIVATIONS
from pretrain.models.layers.norms import Norm, features
from pretrain.sharding import place

LOGITS = ("batch", "length", "vocab")
READ = ("batch", "length", "features")


class Head(nnx.Module):
    """The parameters a head owns: none when it shares the embedding table and has no bias."""

    def __init__(self, config: HeadConfig, vocab_size: int, d_model: int, width: int, init: Init):
        t = config.transform
        self.config = config
        self.transform = init.matrix(("embed", d_model), (None, width)) if t else None
        self.transform_bias = init.vector(0.0, ("features", width)) if t and t.bias else None
        self.norm = features(t.norm, width, init) if t else None
        self.kernel = None if config.tied else init.matrix(("embed", width), ("vocab", vocab_size))
        self.bias = init.vector(0.0, ("vocab", vocab_size)) if config.bias else None

    def ready(self, table: nnx.Param, dtype: jnp.dtype) -> "Unembed":
        """`table`: the embedding, for a head that is tied to it."""

        def used(param: nnx.Param | None, dtype: jnp.dtype) -> jax.Array | None:
            return None if param is None else weight(param, dtype)

        return Unembed(
            self.config,
            kernel_VW=None if self.kernel is not None else weight(table, dtype),
            kernel_WV=used(self.kernel, dtype),
            bias_V=used(self.bias, jnp.float32),
            transform_DW=used(self.transform, dtype),
            transform_bias_W=used(self.transform_bias, dtype),
            norm=self.norm,
        )


class Unembed(nnx.Pytree):
    """A head ready for use, its weights gathered: a pytree of arrays that maps hidden states to logits.

    Chunked losses differentiate through it, so that the gathered weights and their gradient exist once a step.
    """

    def __init__(
        self, config: HeadConfig, *, kernel_VW, kernel_WV, bias_V, transform_DW, transform_bias_W, norm: Norm | None
    ):
        self.config = config
        self.kernel_VW = nnx.data(kernel_VW)
        self.kernel_WV = nnx.data(kernel_WV)
        self.bias_V = nnx.data(bias_V)
        self.transform_DW = nnx.data(transform_DW)
        self.transform_bias_W = nnx.data(transform_bias_W)
        self.norm = nnx.data(norm)

    def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
        """logits_BTV in f32."""
        h_BTW = place.constrain(hidden_BTD, *READ)
        if self.config.transform is not None:
            h_BTW = place.project(h_BTW, self.transform_DW, *READ)
            if self.transform_bias_W is not None:
                h_BTW = h_BTW + self.transform_bias_W
            h_BTW = self.norm(ACTIVATIONS[self.config.transform.activation](h_BTW))
        kernel_WV = self.kernel_VW.T if self.kernel_WV is None else self.kernel_WV
        logits_BTV = place.project(h_BTW, kernel_WV, *LOGITS, dtype=jnp.float32)
        if self.config.scale is not None:
            logits_BTV = logits_BTV * self.config.scale
        if self.bias_V is not None:
            logits_BTV = logits_BTV + self.bias_V
        if self.config.softcap is not None:
            logits_BTV = self.config.softcap * jnp.tanh(logits_BTV / self.config.softcap)
        return logits_BTV


class Task(nnx.Module):
    def __init__(self, config: TaskConfig, d_model: int, init: Init):
        self.config = config
        self.hidden = init.matrix(("embed", d_model), (None, d_model)) if config.hidden else None
        self.hidden_bias = init.vector(0.0, ("features", d_model)) if config.hidden else None
        self.kernel = init.matrix(("embed", d_model), (None, config.labels)) if config.labels else None
        self.bias = init.vector(0.0, (None, config.labels)) if config.labels and config.bias else None

    def __call__(self, hidden_BTD: jax.Array, segments_BT: jax.Array | None, key: jax.Array | None) -> jax.Array:
        """f32: [B, T, labels] of every token, else [B, labels], or the pooled [B, D] where there are no labels."""
        c, dtype = self.config, hidden_BTD.dtype
        whole = READ if c.pool == "token" else ("batch", None, "features")
        h_BtD = place.constrain(_pool(c.pool, place.constrain(hidden_BTD, *whole), segments_BT), *READ)
        if self.hidden is not None:
            h_BtD = place.project(h_BtD, weight(self.hidden, dtype), *READ) + weight(self.hidden_bias, dtype)
            h_BtD = ACTIVATIONS[c.hidden](h_BtD)
        h_BtD = dropout(h_BtD, c.dropout, key)
        y = h_BtD.astype(jnp.float32)
        if self.kernel is not None:
            y = place.project(h_BtD, weight(self.kernel, dtype), "batch", "length", None, dtype=jnp.float32)
            y = y if self.bias is None else y + weight(self.bias, jnp.float32)
        if c.normalise:
            y = y / jnp.maximum(jnp.linalg.norm(y, axis=-1, keepdims=True), 1e-12)
        return y if c.pool == "token" else y[:, 0]


def _pool(kind: str, hidden_BTD: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """[B, t, D]: every token, or the one that stands for the row."""
    B, T = hidden_BTD.shape[:2]
    if kind == "token":
        return hidden_BTD
    if kind == "first":
        return hidden_BTD[:, :1]
    there_BT = jnp.ones((B, T), bool) if segments_BT is None else segments_BT != 0
    if kind == "last":
        at_B = jnp.max(jnp.where(there_BT, jnp.arange(T), 0), axis=1)
        there_BT = jnp.arange(T) == at_B[:, None]
    share_BT = there_BT / jnp.maximum(jnp.sum(there_BT, axis=1, keepdims=True), 1)
    return jnp.einsum("BTD,BT->BD", hidden_BTD, share_BT.astype(hidden_BTD.dtype))[:, None]
