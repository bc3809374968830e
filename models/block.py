"""One layer of any family."""

import jax
from flax import nnx

from pretrain.models.cache import KeyValues
from pretrain.models.config import BlockConfig, NormConfig
from pretrain.models.init import Init
from pretrain.models.layers.attention import Attention, Rows
from pretrain.models.layers.mlp import Mlp
from pretrain.models.layers.norms import Norm
from pretrain.sharding import place

STREAM = ("batch", "sequence", "features")


class Branch(nnx.Module):
    """The norms around one branch: x + branch(f(pre(x))), then residual."""

    def __init__(self, config: BlockConfig, d_model: int, init: Init):
        def norm(c: NormConfig | None) -> Norm | None:
            return Norm(c, d_model, init) if c else None

        self.rate = config.dropout
        self.pre, self.branch, self.residual = norm(config.pre), norm(config.branch), norm(config.residual)

    def before(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD if self.pre is None else self.pre(x_BTD)

    def after(self, x_BTD: jax.Array, y_BTD: jax.Array, key: jax.Array | None) -> jax.Array:
        y_BTD = y_BTD if self.branch is None else self.branch(y_BTD)
        x_BTD = x_BTD + dropout(y_BTD, self.rate, key)
        return x_BTD if self.residual is None else self.residual(x_BTD)


class Block(nnx.Module):
    def __init__(self, config: BlockConfig, d_model: int, init: Init):
        self.config = config
        self.mixer_norms = Branch(config, d_model, init)
        self.mixer = Attention(config.mixer, d_model, init)
        self.cross_norms = Branch(config, d_model, init) if config.cross else None
        self.cross = Attention(config.cross, d_model, init) if config.cross else None
        self.mlp_norms = Branch(config, d_model, init) if config.mlp and not config.parallel else None
        self.mlp = Mlp(config.mlp, d_model, init) if config.mlp else None

    def __call__(self, x_BTD: jax.Array, rows: Rows, cache: KeyValues | None = None, key: jax.Array | None = None):
        """Returns (x_BTD, cache). `key`: of this layer's dropout; None outside training."""
        keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))
        h_BTD = self.mixer_norms.before(x_BTD)
        y_BTD, cache = self.mixer(h_BTD, rows, cache)
        if self.config.parallel and self.mlp is not None:
            y_BTD = y_BTD + self.mlp(h_BTD)
        x_BTD = self.mixer_norms.after(x_BTD, y_BTD, keys[0])
        if self.cross is not None:
            y_BTD, _ = self.cross(self.cross_norms.before(x_BTD), rows, cross=True)
            x_BTD = self.cross_norms.after(x_BTD, y_BTD, keys[1])
        if self.mlp_norms is not None and self.mlp is not None:
            x_BTD = self.mlp_norms.after(x_BTD, self.mlp(self.mlp_norms.before(x_BTD)), keys[2])
        return x_BTD, cache


def dropout(x_BTD: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Srivastava et al. 2014, scaled in training."""
    if key is None or rate == 0:
        return x_BTD
    keep_BTD = place.constrain(jax.random.bernoulli(key, 1 - rate, x_BTD.shape), *STREAM)
    return jax.numpy.where(keep_BTD, x_BTD / (1 - rate), 0).astype(x_BTD.dtype)
