"""Olmo2ForCausalLM (OLMo team 2024): norms after each branch, and of all queries and all keys together."""

from collections.abc import Mapping
from typing import Any

from pretrain.models.config import BlockConfig, MlpConfig, TransformerConfig
from pretrain.models.convert import llama, rope
from pretrain.models.convert.engine import Family
from pretrain.models.convert.fields import Fields, dense
from pretrain.models.convert.rules import Rule

ARCHITECTURE = "Olmo2ForCausalLM"

_layer = "model.layers.{i}."
RULES = (
    *(rule for rule in llama.RULES if "layernorm" not in rule.theirs),
    Rule(_layer + "self_attn.q_norm.weight", "decoder/{layer}/mixer/query_norm/scale", "(k g h) -> k g h"),
    Rule(_layer + "self_attn.k_norm.weight", "decoder/{layer}/mixer/key_norm/scale", "(k h) -> k h"),
    Rule(_layer + "post_attention_layernorm.weight", "decoder/{layer}/mixer_norms/branch/scale", "d -> d"),
    Rule(_layer + "post_feedforward_layernorm.weight", "decoder/{layer}/mlp_norms/branch/scale", "d -> d"),
)


def config_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, ARCHITECTURE)
    s = llama.shared(f, eps=1e-5)
    f.choose("hidden_act", llama.SILU, "silu")
    bias = f.take("attention_bias", bool, False)
    position = rope.from_hf(f, s.length)
    f.finish()
    mixer = s.attention(position=position, bias=bias, out_bias=bias, qk_norm=s.norm, qk_norm_over="all")
    return s.uniform(BlockConfig(mixer=mixer, mlp=MlpConfig(d_ff=s.d_ff), branch=s.norm))


def config_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    block, attention, _ = dense(config, ARCHITECTURE)
    own = {"hidden_act": "silu", "attention_bias": attention.bias}
    return llama.written(config, block, ARCHITECTURE, "olmo2", **own, **llama.turned(block, length, llama.LENGTH))


OLMO2 = Family(
    architecture=ARCHITECTURE,
    model_type="olmo2",
    rules=RULES,
    from_hf=config_from_hf,
    to_hf=config_to_hf,
    base="model.",
    ignored=llama.IGNORED,
    aliases=llama.ALIASES,
)
