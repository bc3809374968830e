"""The direction each kind of optimizer moves one parameter in. `build` adds clipping, decay, rate and sign.

All arithmetic is f32, whatever the stored moment: it is widened, moved, used, then narrowed.
Every rule is elementwise up to means, so a sharded parameter keeps its layout through it and so does its state.
"""

import math
import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pretrain.optimizer.config import Adafactor, AdamW, Kind, Lion, Muon, Stored
from pretrain.optimizer.muon import MatrixAxes, orthogonal_update
from pretrain.sharding import fingerprint

DRAW = 0x85157AF5
"""Odd: neighbouring updates draw other numbers."""
Slots = dict[str, jax.Array]
"""What is remembered of one parameter."""


class Rule(NamedTuple):
    init: Callable[[jax.Array], Slots]
    update: Callable[[jax.Array, Slots, jax.Array, jax.Array], tuple[jax.Array, Slots]]
    """(f32 gradient, slots, parameter, number of this update from 1) -> (direction to subtract, slots)."""


def rule(kind: Kind, axes: MatrixAxes | None, name: str) -> Rule:
    """`name`: of the parameter, so that its rounding is its own."""
    salt = zlib.crc32(name.encode())
    match kind:
        case AdamW():
            return _adamw(kind, salt)
        case Lion():
            return _lion(kind, salt)
        case Adafactor():
            return _adafactor(kind, axes, salt)
        case Muon():
            if axes is None:
                raise ValueError("Muon takes matrices, these parameters have no matrix axes")
            return _muon(kind, axes, salt)


def _ema(slot: jax.Array, value: jax.Array, decay: float) -> jax.Array:
    # 1 - decay is taken in double precision: in f32 it is 6e-5 off at 0.999.
    return decay * slot.astype(jnp.float32) + (1 - decay) * value


def _dtype(stored: Stored) -> str:
    return "float32" if stored == "float32" else "bfloat16"


def _narrow(x: jax.Array, stored: Stored, salt: int, count: jax.Array) -> jax.Array:
    """f32 as it is stored. What is drawn for an element depends on its place, `salt` and `count`, not on the mesh."""
    if stored != "bfloat16_stochastic":
        return x.astype(_dtype(stored))
    mesh = jax.sharding.get_abstract_mesh()
    layout = None if mesh.empty else jax.typeof(x).sharding
    place, stride = jnp.uint32(0), 1
    for d in reversed(range(x.ndim)):
        number = jax.lax.broadcasted_iota(jnp.uint32, x.shape, d, out_sharding=layout)
        place = place + number * jnp.uint32(stride & 0xFFFFFFFF)
        stride *= x.shape[d]
    drawn = fingerprint.mix(jnp.uint32(salt) + count.astype(jnp.uint32) * jnp.uint32(DRAW), place, jnp.uint32) >> 16
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((bits + drawn) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def _one_minus_power(decay: float, count: jax.Array) -> jax.Array:
    """1 - decay ** count, without the cancellation of its f32 form."""
    return -jnp.expm1(count * math.log(decay)) if decay else jnp.float32(1)


def _adamw(kind: AdamW, salt: int) -> Rule:
    def init(param):
        return {
            "mean": jnp.zeros_like(param, dtype=_dtype(kind.first_dtype)),
            "square": jnp.zeros_like(param, dtype=_dtype(kind.second_dtype)),
        }

    def update(grad, slots, param, count):
        mean = _ema(slots["mean"], grad, kind.b1)
        square = _ema(slots["square"], jnp.square(grad), kind.b2)
        # Both bias corrections are scalars here: the elementwise part is one square root and one division.
        root = jnp.sqrt(square) * jax.lax.rsqrt(_one_minus_power(kind.b2, count))
        direction = mean * (1 / _one_minus_power(kind.b1, count)) / (root + kind.eps)
        return direction, {
            "mean": _narrow(mean, kind.first_dtype, salt, count),
            "square": _narrow(square, kind.second_dtype, salt + 1, count),
        }

    return Rule(init, update)


def _lion(kind: Lion, salt: int) -> Rule:
    def init(param):
        return {"mean": jnp.zeros_like(param, dtype=_dtype(kind.first_dtype))}

    def update(grad, slots, param, count):
        direction = jnp.sign(_ema(slots["mean"], grad, kind.b1))
        return direction, {"mean": _narrow(_ema(slots["mean"], grad, kind.b2), kind.first_dtype, salt, count)}

    return Rule(init, update)


def _muon(kind: Muon, axes: MatrixAxes, salt: int) -> Rule:
    def init(param):
        return {"mean": jnp.zeros_like(param, dtype=_dtype(kind.first_dtype))}

    def update(grad, slots, param, count):
        mean = _ema(slots["mean"], grad, kind.momentum)
        ahead = _ema(mean, grad, kind.momentum) if kind.nesterov else mean
        return orthogonal_update(kind, axes, ahead), {"mean": _narrow(mean, kind.first_dtype, salt, count)}

    return Rule(init, update)


def _adafactor(kind: Adafactor, axes: MatrixAxes | None, salt: int) -> Rule:
    """Rows, columns and root mean squares belong to one matrix, so a stack of layers moves as its layers would alone.

    What has no matrix axes is one thing: with two long sides, as a table of embeddings has, it is factored too; a stack
    of vectors shares its root mean squares. Momentum averages directions before the rate, optax's after it: the same
    where the rate is constant.
    """

    def split(param: jax.Array) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The input and output axes of a matrix worth factoring."""
        matrix = axes or (MatrixAxes(0, 1, 1) if param.ndim == 2 else None)
        if matrix is None:
            return None
        ins, outs = matrix.input_axes(param.ndim), matrix.output_axes(param.ndim)
        sides = [math.prod(param.shape[i] for i in side) for side in (ins, outs)]
        return (ins, outs) if min(sides) >= kind.factored_from else None

    def init(param):
        slots = {}
        if sides := split(param):
            slots = {"row": _zeros_without(param, sides[1]), "column": _zeros_without(param, sides[0])}
        else:
            slots = {"square": jnp.zeros_like(param, dtype=jnp.float32)}
        if kind.momentum:
            slots["mean"] = jnp.zeros_like(param, dtype=_dtype(kind.momentum.dtype))
        return slots

    def update(grad, slots, param, count):
        square = jnp.square(grad) + kind.eps
        decay = 1 - count.astype(jnp.float32) ** -kind.decay_exponent
        new = {}
        if sides := split(param):
            ins, outs = sides
            new["row"] = decay * slots["row"] + (1 - decay) * square.mean(outs)
            new["column"] = decay * slots["column"] + (1 - decay) * square.mean(ins)
            row, column = jnp.expand_dims(new["row"], outs), jnp.expand_dims(new["column"], ins)
            # Two inverse roots, not one of the product: the product of two small moments underflows.
            direction = grad * jax.lax.rsqrt(row / row.mean(ins, keepdims=True)) * jax.lax.rsqrt(column)
        else:
            new["square"] = decay * slots["square"] + (1 - decay) * square
            direction = grad * jax.lax.rsqrt(new["square"])
        within = tuple(range(axes.batch if axes else 0, param.ndim))
        if kind.clip_rms:
            direction = direction / jnp.maximum(1.0, _rms(direction, within) / kind.clip_rms)
        if kind.minimum_scale:
            direction = direction * jnp.maximum(_rms(param, within), kind.minimum_scale)
        if kind.momentum:
            direction = _ema(slots["mean"], direction, kind.momentum.b1)
            new["mean"] = _narrow(direction, kind.momentum.dtype, salt, count)
        return direction, new

    return Rule(init, update)


def _rms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axes, keepdims=True))


def _zeros_without(param: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """f32 zeros with the remaining axes of `param`, sharded as they are."""
    left = jax.eval_shape(lambda p: jnp.sum(p, axes, dtype=jnp.float32), param)
    return jnp.zeros_like(left)
