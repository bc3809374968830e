"""MistralForCausalLM: Llama's layers with a sliding window (Jiang et al. 2023)."""

from collections.abc import Mapping
from typing import Any

from pretrain.models.config import BlockConfig, MlpConfig, TransformerConfig
from pretrain.models.convert import llama, rope
from pretrain.models.convert.engine import Family
from pretrain.models.convert.fields import Fields, dense

ARCHITECTURE = "MistralForCausalLM"
LENGTH, WINDOW, KV_HEADS = 131072, 4096, 8
"""Of a config.json that does not say, as in `transformers`."""


def config_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, ARCHITECTURE)
    s = llama.shared(f, length=LENGTH, kv_heads=KV_HEADS)
    f.choose("hidden_act", llama.SILU, "silu")
    window = f.optional("sliding_window", WINDOW, int)
    position = rope.from_hf(f, s.length)
    f.finish()
    mixer = s.attention(position=position, window=window)
    return s.uniform(BlockConfig(mixer=mixer, mlp=MlpConfig(d_ff=s.d_ff), pre=s.norm))


def config_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    block, attention, _ = dense(config, ARCHITECTURE)
    own = {"hidden_act": "silu", "sliding_window": attention.window}
    return llama.written(config, block, ARCHITECTURE, "mistral", **own, **llama.turned(block, length, LENGTH))


MISTRAL = Family(
    architecture=ARCHITECTURE,
    model_type="mistral",
    rules=llama.RULES,
    from_hf=config_from_hf,
    to_hf=config_to_hf,
    base="model.",
    ignored=llama.IGNORED,
    aliases=llama.ALIASES,
)
