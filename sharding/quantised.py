"""Products of activations with weights in 8 bits while a model trains (Jacob et al. 2018, arXiv:1712.05877, for int8;
Micikevicius et al. 2022, arXiv:2209.05433, for fp8), through qwix.

Scales are found anew in every step: one for each token of activations, one for each output of weights, over whole
arrays wherever they lie, so that a mesh changes no scale. Each device multiplies and scales its part, then parts are
added.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from pretrain.errors import UserError

TYPES = {
    "int8": ("int8", "int8"),
    "int8_forward": ("int8", None),
    "fp8": ("float8_e4m3fn", "float8_e5m2"),
    "fp8_forward": ("float8_e4m3fn", None),
}
"""Of activations and weights, and of gradients; None: their products are not in 8 bits."""
FIRST_KEY = 1 << 16
"""Numbers of keys from here on are drawn by nothing else in a layer."""


@dataclass(kw_only=True)
class Arithmetic:
    """Of the products that are traced now."""

    kind: str
    key: jax.Array
    traced: int = field(default=0)

    def next_key(self) -> jax.Array:
        self.traced += 1
        return jax.random.fold_in(self.key, FIRST_KEY + self.traced)


_now: ContextVar[Arithmetic | None] = ContextVar("arithmetic", default=None)


def require() -> None:
    """Raises UserError where qwix is missing."""
    if importlib.util.find_spec("qwix") is None:
        raise UserError(
            "found no qwix, expected it for products in 8 bits; pip install 'pretrain[quant]', or set matmul to float"
        )


@contextmanager
def products(kind: str, key: jax.Array | None) -> Iterator[None]:
    """What is traced inside multiplies by weights in this arithmetic; without a key, outside training, as ever."""
    token = _now.set(None if kind == "float" or key is None else Arithmetic(kind=kind, key=key))
    try:
        yield
    finally:
        _now.reset(token)


def arithmetic() -> Arithmetic | None:
    return _now.get()


@dataclass(frozen=True, kw_only=True)
class How:
    """`x[lead, IN] @ w[IN, out]`."""

    kind: str
    lead: int
    inputs: int
    outputs: int
    dtype: Any
    spread: bool
    """Over several devices."""

    @property
    def forward(self):
        return range(self.lead, self.lead + self.inputs), range(self.inputs)

    @property
    def for_x(self):
        return range(self.lead, self.lead + self.outputs), range(self.inputs, self.inputs + self.outputs)

    @property
    def for_w(self):
        return range(self.lead), range(self.lead)


def product(x: jax.Array, w: jax.Array, contract: int, arithmetic: Arithmetic, out: P | None) -> jax.Array:
    """`x @ w` over the last and first `contract` dimensions; `out`: its layout, None on one device."""
    how = How(
        kind=arithmetic.kind,
        lead=x.ndim - contract,
        inputs=contract,
        outputs=w.ndim - contract,
        dtype=x.dtype,
        spread=out is not None,
    )
    require()
    key = arithmetic.next_key()
    if out is None:
        return _product(how, x, w, key)
    weights = _spec(w)
    taken = {axis for entry in weights for axis in _axes(entry)}
    lead = [tuple(a for a in _axes(entry) if a not in taken) or None for entry in _spec(x)[: how.lead]]
    x = jax.sharding.reshard(x, P(*lead, *weights[:contract]))
    return jax.sharding.reshard(_product(how, x, w, key), out)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(how: How, x: jax.Array, w: jax.Array, key: jax.Array) -> jax.Array:
    return _forward(how, x, w, key)[0]


def _forward(how: How, x, w, key):
    type_, gradients = TYPES[how.kind]
    qx = _quantised(x, range(how.lead), type_)
    qw = _quantised(w, range(how.inputs, w.ndim), type_)
    return _dot(qx, qw, how.forward, how), ((x, w) if gradients is None else (qx, qw), key)


def _backward(how: How, residuals, g):
    (x, w), key = residuals
    type_ = TYPES[how.kind][1]
    if type_ is None:
        return _dot(g, w, how.for_x, how), _dot(x, g, how.for_w, how), None
    # Scales along what is added up here go to the gradient before it is rounded.
    tokens, outputs = range(how.lead), range(how.lead, g.ndim)
    noise = None if type_ != "int8" else _noise(key, g, how)
    by_output = jnp.expand_dims(jnp.squeeze(w.scale, tuple(range(how.inputs))), tuple(tokens))
    by_token = jnp.squeeze(x.scale, tuple(range(how.lead, how.lead + how.inputs)))
    by_token = jnp.expand_dims(by_token, tuple(outputs))
    g = g.astype(jnp.float32)
    dx = _dot(_quantised(g * by_output, tokens, type_, noise), w.qvalue, how.for_x, how)
    dw = _dot(x.qvalue, _quantised(g * by_token, outputs, type_, noise), how.for_w, how)
    return dx, dw, None


_product.defvjp(_forward, _backward)


def _noise(key: jax.Array, g: jax.Array, how: How) -> jax.Array:
    """Of stochastic rounding, one number a token: -0.5 to 0.5 before rounding to nearest."""
    shape = (*g.shape[: how.lead], *(1,) * how.outputs)
    noise = jax.random.uniform(key, shape, jnp.float32, -0.5, 0.5)
    return jax.sharding.reshard(noise, P(*_spec(g)[: how.lead], *(None,) * how.outputs)) if how.spread else noise


def _quantised(x: jax.Array, channels: range, type_: str, noise: jax.Array | None = None):
    """A qwix QArray: values and their scales in f32, one for each of `channels`."""
    from qwix._src.core import qarray

    how = qarray.HowToQuantize(
        qtype=type_, channelwise_axes=tuple(channels), noise_fn=None if noise is None else lambda shape: noise
    )
    q = qarray.quantize(x.astype(jnp.float32), how)
    # The largest is 127.5 steps. Below 0 its last bit would decide between -127 and -128, and a mesh its last bit.
    return q if type_ != "int8" or noise is not None else replace(q, qvalue=jnp.maximum(q.qvalue, -127))


def _dot(a, b, contracted: tuple[range, range], how: How) -> jax.Array:
    """What is left of `a`'s dimensions, then of `b`'s. Each device's part in f32, as `how.dtype` on the wire."""
    import qwix

    left, right = map(tuple, contracted)

    def work(a, b):
        return qwix.dot_general(a, b, ((left, right), ((), ()))).astype(how.dtype)

    if not how.spread:
        return work(a, b)
    specs = jax.tree.map(_spec, (a, b))
    of_a, of_b = (_spec(getattr(x, "qvalue", x)) for x in (a, b))
    added = tuple(axis for i in left for axis in _axes(of_a[i]))
    free = [*(e for i, e in enumerate(of_a) if i not in left), *(e for i, e in enumerate(of_b) if i not in right)]
    add = (lambda y: jax.lax.psum(y, added)) if added else (lambda y: y)
    return jax.shard_map(lambda a, b: add(work(a, b)), in_specs=specs, out_specs=P(*free))(a, b)


def _spec(x: jax.Array) -> P:
    return jax.typeof(x).sharding.spec


def _axes(entry) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
