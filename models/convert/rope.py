"""Rotary positions in both spellings of config.json: `rope_parameters`, and `rope_theta` with `rope_scaling`.

Readers of one spelling silently fall back to theta 10000 when they find only the other, so both are written.
"""

import math
from collections.abc import Mapping
from typing import Any

from pretrain.models.config import (
    DynamicNtkScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    YarnScaling,
)
from pretrain.models.convert.fields import LARGEST, Fields

THETA = 10_000.0
ORIGINAL = "original_max_position_embeddings"
PARTIAL = "partial_rotary_factor"


def from_hf(
    fields: Fields,
    length: int,
    *,
    theta: float = THETA,
    partial: float | None = None,
    scaling: Mapping[str, Any] | None = None,
    interleaved: bool = False,
) -> Rope:
    """`length`: max_position_embeddings, which some scalings take for the original length.

    `theta`, `partial`, `scaling`: what a family takes where config.json says nothing; `partial` None: it turns whole
    heads, always.
    """
    values = merged(fields, scaling)
    return one(values, fields, length, theta=theta, partial=partial, interleaved=interleaved)


def merged(fields: Fields, scaling: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One set of `rope_parameters` from every spelling; `scaling` where there is none."""
    out: dict[str, Any] = {}
    outside = {"rope_theta": fields.take("rope_theta", float, None)}
    outside |= {PARTIAL: fields.take(PARTIAL, float, None), ORIGINAL: fields.take(ORIGINAL, int, None)}
    spellings = [fields.take("rope_parameters", dict, {}), fields.take("rope_scaling", dict, {}), outside]
    for spelling in spellings:
        for key, value in spelling.items():
            key = "rope_type" if key == "type" else key
            if value is not None and out.setdefault(key, value) != value:
                fields.problems.append(f"{fields.where}: {key} is {out[key]!r} and {value!r}; keep one of them")
    return {**out, **(scaling or {})} if not any(spellings[:2]) else out


def one(
    values: Mapping[str, Any],
    fields: Fields,
    length: int,
    *,
    theta: float = THETA,
    partial: float | None = None,
    interleaved: bool = False,
) -> Rope:
    """From one set of `rope_parameters`; problems go to `fields`."""
    inner = Fields(values, fields.architecture, f"{fields.where}: RoPE", fields.problems)
    base = inner.positive("rope_theta", theta, above=1)
    share: float = 1.0
    if partial is None:
        inner.expect(PARTIAL, 1.0)
    else:
        share = inner.positive(PARTIAL, partial) or partial
        if share > 1:
            inner.problems.append(f"{inner.where}: {PARTIAL} is {share}, expected at most 1; correct it")
    kind = inner.choose("rope_type", KINDS, "default")
    if kind in (_none, _linear):
        inner.skip(ORIGINAL)  # which neither of them reads
    found = kind(inner, length)
    inner.leftovers()
    return Rope(theta=base, fraction=share, scaling=found, interleaved=interleaved)


def fraction(turned: int, head_dim: int) -> float:
    """The share of a head that turns `turned` of its dimensions, whatever the rounding."""
    share = turned / head_dim
    return share if int(head_dim * share) == turned else math.nextafter(share, 2.0)


def _none(f: Fields, length: int) -> None:
    return None


def _linear(f: Fields, length: int) -> LinearScaling:
    return LinearScaling(factor=f.positive("factor"))


def _dynamic(f: Fields, length: int) -> DynamicNtkScaling:
    f.expect(ORIGINAL, length)
    return DynamicNtkScaling(factor=f.positive("factor"), original_length=length)


def _yarn(f: Fields, length: int) -> YarnScaling:
    original = f.size(ORIGINAL, length)
    factor = f.positive("factor", length / original if length and original else 1.0)
    attention = f.take("attention_factor", float, None)
    scales = [f.take(name, float, 0.0) for name in ("mscale", "mscale_all_dim")]
    if attention is None and all(scales) and not f.problems:  # DeepSeek's way to say it
        attention = magnitude(factor, scales[0]) / magnitude(factor, scales[1])
    return YarnScaling(
        factor=factor,
        original_length=original,
        beta_fast=f.positive("beta_fast", 32.0),
        beta_slow=f.positive("beta_slow", 1.0),
        attention_factor=attention,
        truncate=f.take("truncate", bool, True),
    )


def magnitude(factor: float, scale: float = 1.0) -> float:
    """YaRN's growth of a logit's two sides (Peng et al. 2023, section 3.4), times DeepSeek's `scale` of it."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _llama3(f: Fields, length: int) -> Llama3Scaling:
    low, high = f.positive("low_freq_factor"), f.positive("high_freq_factor")
    if low and high and low > high:
        f.problems.append(f"{f.where}: low_freq_factor is {low}, expected at most high_freq_factor={high}; correct one")
    return Llama3Scaling(
        factor=f.positive("factor"),
        low_frequency_factor=low,
        high_frequency_factor=high,
        original_length=f.size(ORIGINAL, length),
    )


def _longrope(f: Fields, length: int) -> LongRopeScaling:
    original = f.size(ORIGINAL, length)
    factor = f.positive("factor", length / original if length and original else 1.0)
    attention = f.positive("attention_factor", None)
    if attention is None:
        attention = 1.0 if f.problems else _long_magnitude(factor, original)
    short, long = (tuple(_numbers(f, name)) for name in ("short_factor", "long_factor"))
    if len(short) != len(long):
        f.problems.append(f"{f.where}: found {len(short)} short_factor and {len(long)} long_factor, expected as many")
    return LongRopeScaling(short_factors=short, long_factors=long, original_length=original, attention_factor=attention)


def _long_magnitude(factor: float, original: int) -> float:
    """Ding et al. 2024, in the published code of Phi-3."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0


def _numbers(f: Fields, name: str) -> list[float]:
    values = f.take(name, list)
    good = [float(v) for v in values or () if type(v) in (int, float) and 0 < v < LARGEST]
    if values is not None and (len(good) != len(values) or not good):
        f.problems.append(f"{f.where}: {name} is {repr(values)[:60]}, expected positive numbers; correct it")
    return good


KINDS = {
    "default": _none,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "su": _longrope,  # its name in the first months of Phi-3
}


def to_hf(rope: Rope, length: int | None, default: int, *, partial: bool = False) -> tuple[int, dict]:
    """max_position_embeddings, and the fields of both spellings.

    `length`: the longest sequence the model is meant for; None: what its scaling says, or else `default`. `partial`:
    the family says which share of a head is turned.
    """
    kind, longest = written(rope, length, default)
    share = {PARTIAL: rope.fraction} if partial else {}
    return longest, {
        "rope_parameters": {**kind, "rope_theta": rope.theta, **share},
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.scaling is None else kind,
        **share,
    }


def written(rope: Rope, length: int | None, default: int) -> tuple[dict[str, Any], int]:
    """The scaling's fields, and max_position_embeddings."""
    match rope.scaling:
        case None:
            return {"rope_type": "default"}, length or default
        case LinearScaling() as s:
            return {"rope_type": "linear", "factor": s.factor}, length or default
        case DynamicNtkScaling() as s:
            return {"rope_type": "dynamic", "factor": s.factor}, s.original_length
        case YarnScaling() as s:
            kind: dict[str, Any] = {"rope_type": "yarn", "factor": s.factor, ORIGINAL: s.original_length}
            kind |= {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow}
            kind |= {} if s.attention_factor is None else {"attention_factor": s.attention_factor}
            kind |= {} if s.truncate else {"truncate": False}
            return kind, length or int(s.original_length * s.factor)
        case Llama3Scaling() as s:
            kind = {"rope_type": "llama3", "factor": s.factor, ORIGINAL: s.original_length}
            kind |= {"low_freq_factor": s.low_frequency_factor, "high_freq_factor": s.high_frequency_factor}
            return kind, length or int(s.original_length * s.factor)
        case LongRopeScaling() as s:
            kind = {"rope_type": "longrope", "short_factor": [*s.short_factors], "long_factor": [*s.long_factors]}
            kind |= {ORIGINAL: s.original_length, "attention_factor": s.attention_factor}
            # Readers that know no attention_factor find it in the ratio of the two lengths.
            return kind, round(s.original_length ** (s.attention_factor**2))
