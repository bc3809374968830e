"""Trainable low-rank differences to the matrices of a model (Hu et al. 2021; Liu et al. 2024)."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.errors import UserError
from pretrain.models.config import LoraConfig
from pretrain.models.init import Init, weight
from pretrain.sharding import place


class Adapted(nnx.Module):
    """A matrix W and what was learned beside it: W + alpha / rank * A B, its outputs' norms perhaps learned too."""

    def __init__(self, base: nnx.Param, config: LoraConfig, init: Init):
        self.config, self.base = config, base
        self.axes, self.inputs, self.maps = base.axes, base.inputs, base.maps
        lead, ins = base.axes[: base.maps], base.axes[base.maps : base.maps + base.inputs]
        outs, shape = base.axes[base.maps + base.inputs :], base.shape
        sizes = shape[: base.maps], shape[base.maps : base.maps + base.inputs], shape[base.maps + base.inputs :]
        rank = (None, config.rank)
        dims = [tuple(zip(axes, part)) for axes, part in zip((lead, ins, outs), sizes)]
        std = math.prod(sizes[1]) ** -0.5
        self.a = init.raw((*dims[0], *dims[1], rank), std=std, inputs=base.inputs, maps=base.maps)
        self.b = init.raw((*dims[0], rank, *dims[2]), std=0.0, inputs=1, maps=base.maps)
        self.magnitude = init.raw((*dims[0], *dims[2]), std=0.0) if config.dora else None
        self.measure()

    def measure(self) -> None:
        """The learned norms become those of the matrix: an adapter that changes nothing yet."""
        if self.magnitude is not None:
            self.magnitude.set_value(_norm(self.base[...], self.maps, self.inputs))

    def weight(self, dtype: jnp.dtype) -> jax.Array:
        """The matrix as a layer uses it; without the leading axes that a scan has taken."""
        a, b = weight(self.a, jnp.float32), weight(self.b, jnp.float32)
        maps, n = a.ndim - self.inputs - 1, self.inputs
        flat_a = a.reshape(*a.shape[:maps], -1, a.shape[-1])
        flat_b = b.reshape(*b.shape[: maps + 1], -1)
        w = weight(self.base, jnp.float32)
        delta = (flat_a @ flat_b).reshape(w.shape) if place.whole() else _outer(a, b, maps, n, w)
        w = w + self.config.alpha / self.config.rank * delta
        if self.magnitude is not None:
            m = weight(self.magnitude, jnp.float32)
            ratio = m / jax.lax.stop_gradient(_norm(w, maps, n))  # section 4.3: the norm counts as a constant
            w = w * jnp.expand_dims(ratio, tuple(range(maps, maps + n)))
        return w.astype(dtype)


def _outer(a, b, maps: int, inputs: int, w) -> jax.Array:
    """The same over a mesh, where reshapes would cross shards."""
    letters = "abcdefghijklmnopq"
    lead, ins = letters[:maps], letters[maps : maps + inputs]
    outs = letters[maps + inputs : w.ndim]
    return jnp.einsum(f"{lead}{ins}z,{lead}z{outs}->{lead}{ins}{outs}", a, b, out_sharding=jax.typeof(w).sharding)


def _norm(w: jax.Array, maps: int, inputs: int) -> jax.Array:
    """Of the weights of each output."""
    return jnp.sqrt(jnp.sum(jnp.square(w.astype(jnp.float32)), axis=tuple(range(maps, maps + inputs))))


def adapt(model: nnx.Module, configs: Sequence[LoraConfig], init: Init) -> None:
    """Puts an `Adapted` in the place of every matrix whose name a pattern is found in, in this model.

    Raises UserError for a pattern that finds none.
    """
    found = set()
    for module, attribute, name in list(_matrices(model, "")):
        for i, config in enumerate(configs):
            if re.search(config.pattern, name):
                setattr(module, attribute, Adapted(getattr(module, attribute), config, init))
                found.add(i)
                break
    if lost := [c.pattern for i, c in enumerate(configs) if i not in found]:
        raise UserError(f"adapters: pattern {lost[0]!r} is found in no matrix; the optimizer's errors list the names")


def merged(model):
    """The model with every difference added to its matrix: no adapters, the same function."""
    model = nnx.clone(model)
    for module, attribute, _ in list(_adapted(model)):
        old = getattr(module, attribute)
        new = nnx.Param(
            old.weight(old.base[...].dtype), axes=old.axes, inputs=old.inputs, maps=old.maps, sign_rate=None
        )
        setattr(module, attribute, new)
    model.config = replace(model.config, adapters=())
    return model


def plain_names(names: Iterable[str]) -> dict[str, str | None]:
    """What each parameter is called in the model without adapters; None for what an adapter brings along."""
    names = list(names)
    adapted = {name.removesuffix("/base") for name in names if name.endswith("/base")}

    def plain(name: str) -> str | None:
        matrix = name.rpartition("/")[0]
        return name if matrix not in adapted else matrix if name.endswith("/base") else None

    return {name: plain(name) for name in names}


def measured(model):
    """The model with every adapter's norms taken from its matrix."""
    model = nnx.clone(model)
    for module, attribute, _ in list(_adapted(model)):
        getattr(module, attribute).measure()
    return model


def _modules(module, name: str):
    yield module, name
    items = module.items() if isinstance(module, nnx.Dict) else vars(module).items()
    if isinstance(module, nnx.List):
        items = [(str(i), child) for i, child in enumerate(module)]
    for key, child in items:
        if isinstance(child, nnx.Module) and not key.startswith("_"):
            yield from _modules(child, f"{name}/{key}".lstrip("/"))


def _matrices(model, name: str):
    for module, path in _modules(model, name):
        if not isinstance(module, Adapted | nnx.List | nnx.Dict):
            for key, value in vars(module).items():
                if isinstance(value, nnx.Param) and value.inputs is not None:
                    yield module, key, f"{path}/{key}".lstrip("/")


def _adapted(model):
    for module, path in _modules(model, ""):
        if not isinstance(module, nnx.List | nnx.Dict):
            for key, value in vars(module).items():
                if isinstance(value, Adapted):
                    yield module, key, path
