"""Qwen2ForCausalLM and Qwen3ForCausalLM (Qwen team 2024, 2025): Llama's layers with biases of queries, keys and values,
or with norms of queries and keys."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pretrain.models.config import BlockConfig, MlpConfig, TransformerConfig
from pretrain.models.convert import llama, rope
from pretrain.models.convert.engine import Family
from pretrain.models.convert.fields import Fields, dense
from pretrain.models.convert.periods import FULL, SLIDING, attentions, kinds, stack, types
from pretrain.models.convert.rules import Rule

QWEN2, QWEN3 = "Qwen2ForCausalLM", "Qwen3ForCausalLM"
LENGTH, WINDOW, FULL_LAYERS, KV_HEADS, HEAD_DIM = 32768, 4096, 28, 32, 128
"""Of a config.json that does not say, as in `transformers`; the width of a head in Qwen 3."""

NORMS = (
    Rule("model.layers.{i}.self_attn.q_norm.weight", "decoder/{layer}/mixer/query_norm/scale", "h -> h"),
    Rule("model.layers.{i}.self_attn.k_norm.weight", "decoder/{layer}/mixer/key_norm/scale", "h -> h"),
)
"""Of each head by itself."""


def windows(f: Fields, layers: int | None) -> list[int | None]:
    """The window of each layer: of those from max_window_layers on, or as layer_types says."""
    slides = f.take("use_sliding_window", bool, False)
    window, first = f.optional("sliding_window", WINDOW, int), f.take("max_window_layers", int, FULL_LAYERS)
    window = window if slides else None
    found = kinds(f, layers, lambda i: SLIDING if window is not None and i >= first else FULL)
    return [window if kind == SLIDING else None for kind in found]


def sliding(config: TransformerConfig) -> dict[str, Any]:
    """The fields that `windows` reads."""
    widths = [mixer.window for mixer in attentions(config)]
    first = next((i for i, width in enumerate(widths) if width), len(widths))
    window = next((width for width in widths if width), None)
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": first,
        "layer_types": types(config),
    }


def _read(f: Fields, s: llama.Shared, **own: Any) -> TransformerConfig:
    f.choose("hidden_act", llama.SILU, "silu")
    position = rope.from_hf(f, s.length)
    found = windows(f, s.layers)
    f.finish()
    mixer, mlp = s.attention(position=position, **own), MlpConfig(d_ff=s.d_ff)
    blocks = [BlockConfig(mixer=replace(mixer, window=window), mlp=mlp, pre=s.norm) for window in found]
    return s.model(stack(blocks, s.norm))


def qwen2_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, QWEN2)
    return _read(f, llama.shared(f, length=LENGTH, kv_heads=KV_HEADS), bias=True)


def qwen3_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, QWEN3)
    s = llama.shared(f, length=LENGTH, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
    bias = f.take("attention_bias", bool, False)
    return _read(f, s, bias=bias, out_bias=bias, qk_norm=s.norm)


def qwen2_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    block, _, _ = dense(config, QWEN2)
    own = {"hidden_act": "silu", **sliding(config)}
    fields = llama.written(config, block, QWEN2, "qwen2", **own, **llama.turned(block, length, LENGTH))
    return {name: value for name, value in fields.items() if name != "head_dim"}  # always d_model / heads


def qwen3_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    block, attention, _ = dense(config, QWEN3)
    own = {"hidden_act": "silu", "attention_bias": attention.bias, **sliding(config)}
    return llama.written(config, block, QWEN3, "qwen3", **own, **llama.turned(block, length, LENGTH))


QWEN2_FAMILY = Family(
    architecture=QWEN2,
    model_type="qwen2",
    rules=llama.RULES,
    from_hf=qwen2_from_hf,
    to_hf=qwen2_to_hf,
    base="model.",
    ignored=llama.IGNORED,
    aliases=llama.ALIASES,
)
QWEN3_FAMILY = replace(
    QWEN2_FAMILY,
    architecture=QWEN3,
    model_type="qwen3",
    rules=llama.RULES + NORMS,
    from_hf=qwen3_from_hf,
    to_hf=qwen3_to_hf,
)
