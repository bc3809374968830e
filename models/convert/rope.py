"""Rotary positions in both spellings of config.json: `rope_parameters`, and `rope_theta` with `rope_scaling`.

Readers of one spelling silently fall back to theta 10000 when they find only the other, so both are written.
"""

import math
from typing import Any

from pretrain.models.config import DynamicNtkScaling, LinearScaling, Llama3Scaling, Rope, YarnScaling
from pretrain.models.convert.fields import Fields

THETA = 10_000.0
ORIGINAL = "original_max_position_embeddings"


def from_hf(fields: Fields, length: int) -> Rope:
    """`length`: max_position_embeddings, which some scalings take for the original length."""
    merged: dict[str, Any] = {}
    outside = {"rope_theta": fields.take("rope_theta", float, None)}
    for spelling in (fields.take("rope_parameters", dict, {}), fields.take("rope_scaling", dict, {}), outside):
        for key, value in spelling.items():
            key = "rope_type" if key == "type" else key
            if value is not None and merged.setdefault(key, value) != value:
                fields.problems.append(f"{fields.where}: {key} is {merged[key]!r} and {value!r}; keep one of them")
    fields.expect("partial_rotary_factor", 1.0)
    inner = Fields(merged, fields.architecture, f"{fields.where}: RoPE", fields.problems)
    inner.expect("partial_rotary_factor", 1.0)
    theta = inner.positive("rope_theta", THETA, above=1)
    scaling = inner.choose("rope_type", KINDS, "default")(inner, length)
    inner.leftovers()
    return Rope(theta=theta, scaling=scaling)


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
        above, below = (0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0 for scale in scales)
        attention = above / below
    f.expect("truncate", True)
    return YarnScaling(
        factor=factor,
        original_length=original,
        beta_fast=f.positive("beta_fast", 32.0),
        beta_slow=f.positive("beta_slow", 1.0),
        attention_factor=attention,
    )


def _llama3(f: Fields, length: int) -> Llama3Scaling:
    low, high = f.positive("low_freq_factor"), f.positive("high_freq_factor")
    if low and high and low >= high:
        f.problems.append(
            f"{f.where}: low_freq_factor is {low}, expected less than high_freq_factor={high}; correct one"
        )
    return Llama3Scaling(
        factor=f.positive("factor"),
        low_frequency_factor=low,
        high_frequency_factor=high,
        original_length=f.size(ORIGINAL, length),
    )


KINDS = {"default": lambda f, length: None, "linear": _linear, "dynamic": _dynamic, "yarn": _yarn, "llama3": _llama3}


def to_hf(rope: Rope, length: int | None, default: int) -> tuple[int, dict]:
    """max_position_embeddings, and the fields of both spellings.

    `length`: the longest sequence the model is meant for; None: what its scaling says, or else `default`.
    """
    match rope.scaling:
        case None:
            kind, longest = {"rope_type": "default"}, length or default
        case LinearScaling() as s:
            kind, longest = {"rope_type": "linear", "factor": s.factor}, length or default
        case DynamicNtkScaling() as s:
            kind, longest = {"rope_type": "dynamic", "factor": s.factor}, s.original_length
        case YarnScaling() as s:
            kind = {"rope_type": "yarn", "factor": s.factor, ORIGINAL: s.original_length}
            kind |= {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow}
            kind |= {} if s.attention_factor is None else {"attention_factor": s.attention_factor}
            longest = length or int(s.original_length * s.factor)
        case Llama3Scaling() as s:
            kind = {"rope_type": "llama3", "factor": s.factor, ORIGINAL: s.original_length}
            kind |= {"low_freq_factor": s.low_frequency_factor, "high_freq_factor": s.high_frequency_factor}
            longest = length or int(s.original_length * s.factor)
    scaled = None if rope.scaling is None else kind
    return longest, {
        "rope_parameters": {**kind, "rope_theta": rope.theta},
        "rope_theta": rope.theta,
        "rope_scaling": scaled,
    }
