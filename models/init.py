"""How parameters come to be: their names for axes, their distribution, their layout from the first moment."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.models.config import InitConfig, TransformerConfig
from pretrain.sharding import place
from pretrain.sharding.axes import Axis
from pretrain.sharding.columns import Columns


@dataclass(frozen=True, kw_only=True)
class Init:
    """Makes the parameters of one module. `stacked` adds a leading `layers` axis to every shape."""

    config: InitConfig
    d_model: int
    layers: int
    branches: int
    """Residual branches of the deepest stack: two a block without cross attention."""
    rngs: nnx.Rngs
    stacked: int | None = None

    @staticmethod
    def of(config: TransformerConfig, rngs: nnx.Rngs) -> "Init":
        blocks = config.stack.blocks
        branches = sum(1 + (b.mlp is not None) + (b.cross is not None) for b in blocks)
        return Init(config=config.init, d_model=config.d_model, layers=len(blocks), branches=branches, rngs=rngs)

    def stack(self, layers: int) -> "Init":
        return replace(self, stacked=layers)

    def matrix(
        self, *dims: tuple[Axis | None, int], inputs: int = 1, residual: bool = False, experts: int = 0, gain: float = 1
    ) -> nnx.Param:
        """A linear map: the first `inputs` dimensions are contracted, the others come out.

        `residual`: it writes to the residual stream. `experts`: so many maps, in a leading dimension. `gain`: factor of
        the schemes that follow the width ("t5").
        """
        c = self.config
        fan_in, fan_out = (math.prod(size for _, size in part) for part in (dims[:inputs], dims[inputs:]))
        std = {
            "small": math.sqrt(2 / (5 * self.d_model)),
            "fan_in": fan_in**-0.5,
            "t5": gain * fan_in**-0.5,
            "xavier": math.sqrt(2 / (fan_in + fan_out)),
        }.get(c.kind, c.std)
        if residual and c.residual == "depth":
            std /= math.sqrt(self.branches)
        elif residual and c.residual == "wang":
            std = 2 / (self.layers * math.sqrt(self.d_model))
        if experts:
            dims = (("expert", experts), *dims)
        truncate = c.kind in ("fan_in", "truncated")
        return self._param(dims, std=std, truncate=truncate, inputs=inputs, maps=int(bool(experts)))

    def table(self, *dims: tuple[Axis | None, int]) -> nnx.Param:
        """Rows looked up by number."""
        return self._param(dims, std=self.config.std if self.config.embed_std is None else self.config.embed_std)

    def relative(self, *dims: tuple[Axis | None, int]) -> nnx.Param:
        """Biases of distances: "t5" starts them like what reads the residual stream."""
        return self._param(dims, std=self.d_model**-0.5 if self.config.kind == "t5" else self.config.std)

    def vector(self, value: float, *dims: tuple[Axis | None, int], sign_rate: float | None = None) -> nnx.Param:
        """A norm's scale or a bias. `sign_rate`: see `tree.sign_rates`."""
        return self._param(dims, fill=value, sign_rate=sign_rate)

    def _param(self, dims, *, std=0.0, truncate=False, fill=None, inputs=None, maps=0, sign_rate=None):
        """`inputs`: dimensions a linear map contracts, after `maps` that number independent ones."""
        axes = tuple(axis for axis, _ in dims)
        shape = tuple(size for _, size in dims)
        if self.stacked is not None:
            axes, shape, maps = ("layers", *axes), (self.stacked, *shape), maps + 1
        spec = place.stored_spec(shape, axes)
        if fill is not None:
            value = jnp.full(shape, fill, jnp.float32, out_sharding=spec)
        elif truncate:
            # 0.8796 is the standard deviation of a normal cut at 2 sigma (as in jax.nn.initializers).
            value = jax.random.truncated_normal(self.rngs.params(), -2, 2, shape, out_sharding=spec) * (
                std / 0.87962566
            )
        else:
            value = jax.random.normal(self.rngs.params(), shape, out_sharding=spec) * std
        return nnx.Param(value, axes=axes, inputs=inputs, maps=maps, sign_rate=sign_rate)

    def raw(self, dims, *, std: float, inputs: int | None = None, maps: int = 0) -> nnx.Param:
        """Normal numbers in exactly these dimensions."""
        return replace(self, stacked=None)._param(dims, std=std, inputs=inputs, maps=maps)


def weight(param, dtype: jnp.dtype) -> jax.Array:
    """A parameter, or a module that makes one, as a layer uses it: in the compute type, gathered from the way it is
    stored."""
    if not isinstance(param, nnx.Variable):
        return param.weight(dtype)
    value = param[...]
    return place.gather(value, param.axes[-value.ndim :] if value.ndim else (), dtype)


def at_rest(param, dtype: jnp.dtype, used: place.Axes) -> tuple[jax.Array, place.AtRest | place.Axes]:
    """The same as it is stored, with the axes for `place.local` to collect it. What is made, or was collected before,
    as it is used."""
    if not isinstance(param, nnx.Variable):
        return param.weight(dtype), used
    value = param[...]
    stored = tuple(param.axes[-value.ndim :])
    stays = place.whole() or jax.typeof(value).sharding.spec == place.stored_spec(value.shape, stored)
    return value.astype(dtype), place.AtRest(stored, used) if stays else used


class Blocked(nnx.Module):
    """A matrix that only `place.project` reads, stored for products with few rows on CPU."""

    def __init__(self, w: jax.Array, contract: int):
        self.columns = nnx.data(Columns.of(w, contract))

    def weight(self, dtype: jnp.dtype) -> Columns:
        assert self.columns.dtype == dtype
        return self.columns
