"""Phi3ForCausalLM: Phi-3 and Phi-4 (Abdin et al. 2024): Llama's layers with fused matrices and LongRoPE."""

from collections.abc import Mapping
from typing import Any

from pretrain.models.config import BlockConfig, EmbedConfig, LongRopeScaling, MlpConfig, Rope, TransformerConfig
from pretrain.models.convert import llama, rope
from pretrain.models.convert.engine import Family
from pretrain.models.convert.fields import Fields, dense
from pretrain.models.convert.rules import Rule

ARCHITECTURE = "Phi3ForCausalLM"
LENGTH = 4096
"""Of a config.json that does not say, as in `transformers`: also the length before LongRoPE."""

_mixer, _mlp = "decoder/{layer}/mixer/", "decoder/{layer}/mlp/"
RULES = (
    *(
        rule
        for rule in llama.RULES
        if rule.theirs.split(".")[-2] not in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    ),
    Rule(
        "model.layers.{i}.self_attn.qkv_proj.weight",
        (_mixer + "query", _mixer + "key", _mixer + "value"),
        ("(k g h) d -> d k g h", "(k h) d -> d k h", "(k h) d -> d k h"),
    ),
    Rule("model.layers.{i}.mlp.gate_up_proj.weight", (_mlp + "gate", _mlp + "up"), ("f d -> d f", "f d -> d f")),
)


def config_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields({rope.ORIGINAL: LENGTH, **values}, ARCHITECTURE)
    s = llama.shared(f, length=LENGTH, eps=1e-5)
    f.choose("hidden_act", llama.SILU, "silu")
    window = f.optional("sliding_window", None, int)
    dropout, embed_dropout = f.take("resid_pdrop", float, 0.0), f.take("embd_pdrop", float, 0.0)
    position = rope.from_hf(f, s.length, partial=1.0)
    f.finish()
    mixer = s.attention(position=position, window=window)
    block = BlockConfig(mixer=mixer, mlp=MlpConfig(d_ff=s.d_ff), pre=s.norm, dropout=dropout)
    return s.uniform(block, embed=EmbedConfig(dropout=embed_dropout))


def config_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    block, attention, _ = dense(config, ARCHITECTURE)
    scaling = attention.position.scaling if isinstance(attention.position, Rope) else None
    own = {
        "hidden_act": "silu",
        "sliding_window": attention.window,
        rope.ORIGINAL: scaling.original_length if isinstance(scaling, LongRopeScaling) else LENGTH,
        "resid_pdrop": block.dropout,
        "embd_pdrop": config.embed.dropout,
    }
    fields = llama.written(
        config, block, ARCHITECTURE, "phi3", **own, **llama.turned(block, length, LENGTH, partial=True)
    )
    return {name: value for name, value in fields.items() if name != "head_dim"}  # always d_model / heads


PHI3 = Family(
    architecture=ARCHITECTURE,
    model_type="phi3",
    rules=RULES,
    from_hf=config_from_hf,
    to_hf=config_to_hf,
    base="model.",
    ignored=llama.IGNORED,
    aliases=llama.ALIASES,
)
