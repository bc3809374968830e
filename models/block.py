"""One layer of any family."""

import jax
from flax import nnx

from pretrain.models.cache import LayerCache
from pretrain.models.config import BlockConfig, MlaConfig, MoeConfig, NormConfig
from pretrain.models.init import Init
from pretrain.models.layers.attention import Attention
from pretrain.models.layers.embed import dropout
from pretrain.models.layers.mla import LatentAttention
from pretrain.models.layers.mlp import Mlp
from pretrain.models.layers.moe import Load, Losses, Moe
from pretrain.models.layers.norms import Norm, features
from pretrain.models.layers.rows import Rows


class Branch(nnx.Module):
    """The norms around one branch: x + branch(f(pre(x))), then residual."""

    def __init__(self, config: BlockConfig, d_model: int, init: Init, *, pre: bool = True):
        def norm(c: NormConfig | None) -> Norm | None:
            return features(c, d_model, init) if c else None

        self.rate = config.dropout
        self.pre = norm(config.pre) if pre else None
        self.branch, self.residual = norm(config.branch), norm(config.residual)

    def before(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD if self.pre is None else self.pre(x_BTD)

    def after(self, x_BTD: jax.Array, y_BTD: jax.Array, key: jax.Array | None) -> jax.Array:
        y_BTD = y_BTD if self.branch is None else self.branch(y_BTD)
        x_BTD = x_BTD + dropout(y_BTD, self.rate, key)
        return x_BTD if self.residual is None else self.residual(x_BTD)


class Block(nnx.Module):
    def __init__(self, config: BlockConfig, d_model: int, init: Init):
        latent, mixture = isinstance(config.mixer, MlaConfig), isinstance(config.mlp, MoeConfig)
        self.config = config
        self.mixer_norms = Branch(config, d_model, init, pre=config.mixer_pre)
        self.mixer = (LatentAttention if latent else Attention)(config.mixer, d_model, init)  # type: ignore
        self.cross_norms = Branch(config, d_model, init) if config.cross else None
        self.cross = Attention(config.cross, d_model, init) if config.cross else None
        alone = config.mlp is not None and config.parallel == "no"
        self.mlp_norms = Branch(config, d_model, init) if alone else None
        second = config.mlp is not None and config.parallel == "two_norms" and config.pre is not None
        self.mlp_pre = features(config.pre, d_model, init) if second and config.pre else None
        self.mlp = (Moe if mixture else Mlp)(config.mlp, d_model, init) if config.mlp else None  # type: ignore

    def __call__(self, x_BTD: jax.Array, rows: Rows, cache: LayerCache | None = None, key: jax.Array | None = None):
        """Returns (x_BTD, cache, load). `key`: of this layer's dropout; None outside training."""
        keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))
        h_BTD = self.mixer_norms.before(x_BTD)
        y_BTD, mine = self.mixer(h_BTD, rows, cache and cache.mixer)
        load: Load = {}
        if self.config.parallel != "no":
            z_BTD, load = self._mlp(h_BTD if self.mlp_pre is None else self.mlp_pre(x_BTD), rows)
            y_BTD = y_BTD + z_BTD
        x_BTD = self.mixer_norms.after(x_BTD, y_BTD, keys[0])
        across = cache and cache.cross
        if self.cross is not None and self.cross_norms is not None:
            y_BTD, across = self.cross(self.cross_norms.before(x_BTD), rows, across, cross=True)
            x_BTD = self.cross_norms.after(x_BTD, y_BTD, keys[1])
        if self.mlp_norms is not None:
            y_BTD, load = self._mlp(self.mlp_norms.before(x_BTD), rows)
            x_BTD = self.mlp_norms.after(x_BTD, y_BTD, keys[2])
        return x_BTD, None if mine is None else LayerCache(mixer=mine, cross=across), load

    def losses(self, load: Load) -> Losses:
        """The layer's own, of tokens whose loads have been added."""
        return self.mlp.losses(load) if isinstance(self.mlp, Moe) else {}

    def _mlp(self, h_BTD: jax.Array, rows: Rows) -> tuple[jax.Array, Load]:
        if isinstance(self.mlp, Moe):
            return self.mlp(h_BTD, rows.segments_BT)
        return (self.mlp(h_BTD) if self.mlp is not None else 0.0 * h_BTD), {}
