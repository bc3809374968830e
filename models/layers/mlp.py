"""The position-wise feed-forward layer, plain or gated."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.models.config import Activation, MlpConfig
from pretrain.models.init import Init, weight
from pretrain.sharding import place

ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_quick": lambda x: x * jax.nn.sigmoid(1.702 * x),  # Hendrycks & Gimpel 2016, section 2
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021
    "tanh": jnp.tanh,
}
HIDDEN = ("batch", "length", "mlp")


class Mlp(nnx.Module):
    def __init__(self, config: MlpConfig, d_model: int, init: Init):
        wide, narrow = ("mlp", config.d_ff), ("embed", d_model)
        self.config = config
        self.up = init.matrix(narrow, wide)
        self.gate = init.matrix(narrow, wide) if config.gated else None
        self.fused = nnx.data(None)
        self.down = init.matrix(wide, narrow, residual=True)
        self.up_bias = init.vector(0.0, wide) if config.bias else None
        self.gate_bias = init.vector(0.0, wide) if config.bias and config.gated else None
        self.down_bias = init.vector(0.0, ("features", d_model)) if config.bias else None

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x_BTD = place.constrain(x_BTD, "batch", "length", "features")
        up_BTF, gate_BTF = self._products(x_BTD)
        up_BTF = checkpoint_name(_biased(up_BTF, self.up_bias), "mlp_up")
        if gate_BTF is not None:
            gate_BTF = checkpoint_name(_biased(gate_BTF, self.gate_bias), "mlp_gate")
        hidden_BTF = activate(self.config, up_BTF, gate_BTF)
        y_BTD = place.project(hidden_BTF, weight(self.down, x_BTD.dtype), "batch", "sequence", "features")
        if self.down_bias is not None:
            y_BTD = y_BTD + weight(self.down_bias, y_BTD.dtype)
        return checkpoint_name(y_BTD, "mlp_down")

    def fuse(self) -> None:
        """Both wide matrices become one product, for decoding on one device."""
        if self.gate is not None:
            kernels = [weight(p, p[...].dtype) for p in (self.up, self.gate)]
            self.fused = nnx.Param(
                jnp.concatenate(kernels, axis=1), axes=("embed", None), inputs=1, maps=0, sign_rate=None
            )
            self.up = self.gate = None

    def _products(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        if self.fused is not None:
            both_BTN = place.project(x_BTD, weight(self.fused, x_BTD.dtype), "batch", "length", None)
            up_BTF, gate_BTF = jnp.split(both_BTN, 2, axis=-1)
            return up_BTF, gate_BTF
        up_BTF = place.project(x_BTD, weight(self.up, x_BTD.dtype), *HIDDEN)
        return up_BTF, None if self.gate is None else place.project(x_BTD, weight(self.gate, x_BTD.dtype), *HIDDEN)


def activate(config: MlpConfig, up: jax.Array, gate: jax.Array | None) -> jax.Array:
    """What the last matrix reads."""
    function = ACTIVATIONS[config.activation]
    if gate is None:
        return function(up)
    if config.clamp is not None:
        up, gate = jnp.clip(up, -config.clamp, config.clamp), jnp.minimum(gate, config.clamp)
    return function(gate) * (up + config.up_offset if config.up_offset else up)


def _biased(y: jax.Array, bias: nnx.Param | None) -> jax.Array:
    return y if bias is None else y + weight(bias, y.dtype)
