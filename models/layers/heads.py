"""From hidden states to logits."""

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.models.config import HeadConfig
from pretrain.models.init import Init
from pretrain.sharding import place

LOGITS = ("batch", "length", "vocab")


class Head(nnx.Module):
    """The parameters a head owns: none when it shares the embedding table and has no bias."""

    def __init__(self, config: HeadConfig, vocab_size: int, d_model: int, init: Init):
        self.kernel = None if config.tied else init.matrix(("embed", d_model), ("vocab", vocab_size))
        self.bias = init.vector(0.0, ("vocab", vocab_size)) if config.bias else None


class Unembed(nnx.Pytree):
    """A head ready for use, its weights gathered: a pytree of arrays that maps hidden states to logits.

    Chunked losses differentiate through it, so that the gathered weights and their gradient exist once a step.
    """

    def __init__(self, config: HeadConfig, kernel_VD: jax.Array | None, kernel_DV: jax.Array | None, bias_V):
        self.config = config
        self.kernel_VD = nnx.data(kernel_VD)
        self.kernel_DV = nnx.data(kernel_DV)
        self.bias_V = nnx.data(bias_V)

    def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
        """logits_BTV in f32."""
        hidden_BTD = place.constrain(hidden_BTD, "batch", "length", "features")
        kernel_DV = self.kernel_VD.T if self.kernel_DV is None else self.kernel_DV
        logits_BTV = place.project(hidden_BTD, kernel_DV, *LOGITS, dtype=jnp.float32)
        if self.config.scale is not None:
            logits_BTV = logits_BTV * self.config.scale
        if self.bias_V is not None:
            logits_BTV = logits_BTV + self.bias_V
        if self.config.softcap is not None:
            logits_BTV = self.config.softcap * jnp.tanh(logits_BTV / self.config.softcap)
        return logits_BTV
