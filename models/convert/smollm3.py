"""SmolLM3ForCausalLM (Bakouch et al. 2025): Llama's layers, some of them without positions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pretrain.models.config import BlockConfig, MlpConfig, Rope, TransformerConfig
from pretrain.models.convert import llama, rope
from pretrain.models.convert.engine import Family
from pretrain.models.convert.fields import Fields, dense
from pretrain.models.convert.periods import FULL, SLIDING, attentions, bounded, kinds, stack
from pretrain.models.convert.qwen import sliding

ARCHITECTURE = "SmolLM3ForCausalLM"
LENGTH, KV_HEADS, THETA, PERIOD = 32768, 4, 2e6, 4
"""Of a config.json that does not say, as in `transformers`; every PERIOD-th layer has no positions."""


def turning(f: Fields, layers: int | None, period: int) -> list[bool]:
    """no_rope_layers, where 1 stands for a layer with positions; no_rope_layer_interval makes it where it is absent."""
    every = f.size("no_rope_layer_interval", period) or period
    usual = [int((i + 1) % every != 0) for i in range(bounded(f, layers))]
    found = f.take("no_rope_layers", list, usual) or usual
    if layers and (len(found) != layers or any(type(n) not in (int, bool) or n not in (0, 1) for n in found)):
        f.problems.append(f"{f.where}: no_rope_layers is {repr(found)[:60]}, expected {layers} times 0 or 1")
        return [bool(n) for n in usual]
    return [bool(n) for n in found]


def config_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, ARCHITECTURE)
    s = llama.shared(f, length=LENGTH, kv_heads=KV_HEADS, tied=True)
    f.choose("hidden_act", llama.SILU, "silu")
    bias, mlp_bias = f.take("attention_bias", bool, False), f.take("mlp_bias", bool, False)
    position = rope.from_hf(f, s.length, theta=THETA)
    turns = turning(f, s.layers, PERIOD)
    window = f.optional("sliding_window", None, int) if f.take("use_sliding_window", bool, False) else None
    f.skip("sliding_window", "max_window_layers")
    found = kinds(f, s.layers, lambda i: SLIDING if window and not turns[i] else FULL)
    f.finish()
    mixer, mlp = s.attention(bias=bias, out_bias=bias), MlpConfig(d_ff=s.d_ff, bias=mlp_bias)
    blocks = [
        BlockConfig(
            mixer=replace(mixer, position=position if turn else None, window=window if kind == SLIDING else None),
            mlp=mlp,
            pre=s.norm,
        )
        for turn, kind in zip(turns, found, strict=True)
    ]
    return s.model(stack(blocks, s.norm))


def config_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    block, attention, mlp = dense(config, ARCHITECTURE)
    turns = [isinstance(mixer.position, Rope) for mixer in attentions(config)]
    first = next((b for b, turn in zip(config.stack.blocks, turns) if turn), block)
    own = {
        "hidden_act": "silu",
        "attention_bias": attention.bias,
        "mlp_bias": mlp.bias,
        "no_rope_layers": [int(turn) for turn in turns],
        "no_rope_layer_interval": PERIOD,
        **sliding(config),
    }
    fields = llama.written(config, block, ARCHITECTURE, "smollm3", **own, **llama.turned(first, length, LENGTH))
    return {name: value for name, value in fields.items() if name not in ("head_dim", "max_window_layers")}


SMOLLM3 = Family(
    architecture=ARCHITECTURE,
    model_type="smollm3",
    rules=llama.RULES,
    from_hf=config_from_hf,
    to_hf=config_to_hf,
    base="model.",
    ignored=llama.IGNORED,
    aliases=llama.ALIASES,
)
