"""The position-wise feed-forward layer, plain or gated."""

from collections.abc import Callable

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.models.config import Activation, MlpConfig
from pretrain.models.init import Init, weight
from pretrain.sharding import place

ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}
HIDDEN = ("batch", "length", "mlp")


class Mlp(nnx.Module):
    def __init__(self, config: MlpConfig, d_model: int, init: Init):
        wide, narrow = ("mlp", config.d_ff), ("embed", d_model)
        self.config = config
        self.up = init.matrix(narrow, wide)
        self.gate = init.matrix(narrow, wide) if config.gated else None
        self.down = init.matrix(wide, narrow, residual=True)
        self.up_bias = init.vector(0.0, wide) if config.bias else None
        self.gate_bias = init.vector(0.0, wide) if config.bias and config.gated else None
        self.down_bias = init.vector(0.0, ("features", d_model)) if config.bias else None

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x_BTD = place.constrain(x_BTD, "batch", "length", "features")
        activate = ACTIVATIONS[self.config.activation]
        up_BTF = checkpoint_name(self._wide(x_BTD, self.up, self.up_bias), "mlp_up")
        if self.gate is None:
            hidden_BTF = activate(up_BTF)
        else:
            hidden_BTF = activate(checkpoint_name(self._wide(x_BTD, self.gate, self.gate_bias), "mlp_gate")) * up_BTF
        y_BTD = place.project(hidden_BTF, weight(self.down, x_BTD.dtype), "batch", "sequence", "features")
        if self.down_bias is not None:
            y_BTD = y_BTD + weight(self.down_bias, y_BTD.dtype)
        return checkpoint_name(y_BTD, "mlp_down")

    def _wide(self, x_BTD: jax.Array, kernel: nnx.Param, bias: nnx.Param | None) -> jax.Array:
        y_BTF = place.project(x_BTD, weight(kernel, x_BTD.dtype), *HIDDEN)
        return y_BTF if bias is None else y_BTF + weight(bias, y_BTF.dtype)
