"""A model as a flat list: the name, the axes and the layout of every parameter."""

import math
from collections.abc import Callable

import jax
from flax import nnx

from pretrain.models.config import TransformerConfig
from pretrain.models.transformer import Transformer
from pretrain.sharding import place


def params(model: Transformer) -> dict[str, nnx.Param]:
    """Name -> parameter, as in `decoder/pattern/0/mixer/query`."""
    leaves = jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return {"/".join(word(k) for k in path): param for path, param in leaves}


def like(model: Transformer, of: Callable[[str, nnx.Param], object]) -> Transformer:
    """A tree shaped like the model whose leaves are `of(name, parameter)`."""
    return jax.tree.unflatten(jax.tree.structure(model), [of(name, p) for name, p in params(model).items()])


def names(model: Transformer) -> Transformer:
    return like(model, lambda name, _: name)


def shardings(model: Transformer, mesh: jax.sharding.Mesh) -> Transformer:
    """The layout at rest of every parameter."""
    return like(model, lambda _, p: place.stored(jax.tree.leaves(p)[0].shape, p.axes, mesh))


def matrix_axes(model: Transformer) -> Transformer:
    """(independent, input, output) dimensions of every linear map; None for vectors and tables."""

    def of(_: str, p: nnx.Param):
        if p.inputs is None:
            return None
        return p.maps, p.inputs, len(p.axes) - p.maps - p.inputs

    return like(model, of)


def sign_rates(model: Transformer) -> Transformer:
    """How far a parameter moves against the sign of its gradient in a step; None for those an optimizer moves."""
    return like(model, lambda _, p: p.sign_rate)


def abstract(config: TransformerConfig, dtype=jax.numpy.float32) -> Transformer:
    """The model without its numbers."""
    return jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0), dtype=dtype))


def size(model: Transformer) -> int:
    """How many parameters."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(model))


def word(key) -> str:
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TypeError(f"a path of a model holds {key!r}; expected attributes, keys and indices")
