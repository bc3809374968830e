"""LlamaForCausalLM: Llama 1, 2, 3 and models of the same architecture; and what later families share with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    InitConfig,
    MlpConfig,
    NormConfig,
    Rope,
    StackConfig,
    TransformerConfig,
)
from pretrain.models.convert import rope
from pretrain.models.convert.engine import Family
from pretrain.models.convert.fields import REQUIRED, Fields, dense
from pretrain.models.convert.rules import Rule

ARCHITECTURE = "LlamaForCausalLM"
LENGTH = 2048
"""max_position_embeddings of a model that does not say, as in `transformers`."""
SILU = {"silu": "silu", "swish": "silu"}

RULES = (
    Rule("model.embed_tokens.weight", "embed/tokens", "v d -> v d"),
    Rule("model.layers.{i}.input_layernorm.weight", "decoder/{layer}/mixer_norms/pre/scale", "d -> d"),
    Rule("model.layers.{i}.self_attn.q_proj.weight", "decoder/{layer}/mixer/query", "(k g h) d -> d k g h"),
    Rule("model.layers.{i}.self_attn.q_proj.bias", "decoder/{layer}/mixer/query_bias", "(k g h) -> k g h"),
    Rule("model.layers.{i}.self_attn.k_proj.weight", "decoder/{layer}/mixer/key", "(k h) d -> d k h"),
    Rule("model.layers.{i}.self_attn.k_proj.bias", "decoder/{layer}/mixer/key_bias", "(k h) -> k h"),
    Rule("model.layers.{i}.self_attn.v_proj.weight", "decoder/{layer}/mixer/value", "(k h) d -> d k h"),
    Rule("model.layers.{i}.self_attn.v_proj.bias", "decoder/{layer}/mixer/value_bias", "(k h) -> k h"),
    Rule("model.layers.{i}.self_attn.o_proj.weight", "decoder/{layer}/mixer/out", "d (k g h) -> k g h d"),
    Rule("model.layers.{i}.self_attn.o_proj.bias", "decoder/{layer}/mixer/out_bias", "d -> d"),
    Rule("model.layers.{i}.post_attention_layernorm.weight", "decoder/{layer}/mlp_norms/pre/scale", "d -> d"),
    Rule("model.layers.{i}.mlp.gate_proj.weight", "decoder/{layer}/mlp/gate", "f d -> d f"),
    Rule("model.layers.{i}.mlp.gate_proj.bias", "decoder/{layer}/mlp/gate_bias", "f -> f"),
    Rule("model.layers.{i}.mlp.up_proj.weight", "decoder/{layer}/mlp/up", "f d -> d f"),
    Rule("model.layers.{i}.mlp.up_proj.bias", "decoder/{layer}/mlp/up_bias", "f -> f"),
    Rule("model.layers.{i}.mlp.down_proj.weight", "decoder/{layer}/mlp/down", "d f -> f d"),
    Rule("model.layers.{i}.mlp.down_proj.bias", "decoder/{layer}/mlp/down_bias", "d -> d"),
    Rule("model.norm.weight", "decoder/final_norm/scale", "d -> d"),
    Rule("lm_head.weight", "head/kernel", "v d -> d v"),
)


IGNORED = (r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"(model\.)?rotary_emb\.inv_freq")
ALIASES = (("lm_head.weight", "model.embed_tokens.weight"),)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What config.json says in the same words in every family after Llama."""

    vocab_size: int
    d_model: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    norm: NormConfig
    tied: bool
    std: float
    length: int

    def attention(self, **more: Any) -> AttentionConfig:
        return AttentionConfig(heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim, **more)

    def model(self, decoder: StackConfig, **more: Any) -> TransformerConfig:
        own = {"head": HeadConfig(tied=self.tied), "init": InitConfig(std=self.std), **more}
        return TransformerConfig(vocab_size=self.vocab_size, d_model=self.d_model, decoder=decoder, **own)

    def uniform(self, block: BlockConfig, **more: Any) -> TransformerConfig:
        """All layers alike."""
        return self.model(StackConfig(pattern=(block,), repeats=self.layers, final_norm=self.norm), **more)


def shared(
    f: Fields,
    *,
    length: int = LENGTH,
    eps: float = 1e-6,
    tied: bool = False,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    whole: bool = False,
    scale: Literal["one", "zero"] = "one",
    d_ff: Any = REQUIRED,
) -> Shared:
    """Reads it, with a family's defaults: `kv_heads` None: as many as heads; `head_dim` None: d_model / heads.

    `whole`: heads must divide d_model even where head_dim says something else, as `transformers` demands.
    """
    d_model, heads = f.size("hidden_size"), f.size("num_attention_heads")
    stated = f.values.get("head_dim") is not None or head_dim is not None
    if d_model and heads and d_model % heads and (whole or not stated):
        f.problems.append(f"{f.where}: hidden_size is {d_model}, expected a multiple of num_attention_heads={heads}")
    f.skip("attention_dropout", "pretraining_tp")  # of training; of how a matrix product is cut, not of its result
    return Shared(
        d_model=d_model,
        heads=heads,
        kv_heads=f.size("num_key_value_heads", kv_heads or heads),
        head_dim=f.size("head_dim", head_dim or (d_model // heads if d_model and heads else None)),
        layers=f.size("num_hidden_layers"),
        d_ff=f.size("intermediate_size", d_ff),
        vocab_size=f.size("vocab_size"),
        norm=NormConfig(kind="rms", eps=f.take("rms_norm_eps", float, eps), scale=scale),
        tied=f.take("tie_word_embeddings", bool, tied),
        std=f.take("initializer_range", float, 0.02),
        length=f.size("max_position_embeddings", length),
    )


def written(
    config: TransformerConfig, block: BlockConfig, architecture: str, model_type: str, **fields: Any
) -> dict[str, Any]:
    """config.json of a family after Llama: what all say, then its own `fields`."""
    attention, norm = block.mixer, block.pre or block.branch or NormConfig()
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": block.mlp.d_ff if isinstance(block.mlp, MlpConfig) else 1,
        "num_hidden_layers": len(config.stack.blocks),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": getattr(attention, "kv_heads", attention.heads),
        **({"head_dim": attention.head_dim} if isinstance(attention, AttentionConfig) else {}),
        "max_position_embeddings": LENGTH,
        "rms_norm_eps": norm.eps,
        "initializer_range": config.init.std,
        "tie_word_embeddings": bool(config.head and config.head.tied),
        "attention_dropout": 0.0,
        "use_cache": True,
        **fields,
    }


def turned(block: BlockConfig, length: int | None, default: int, *, partial: bool = False) -> dict[str, Any]:
    """The fields of a layer's rotary positions, and max_position_embeddings."""
    position = getattr(block.mixer, "position", None)
    longest, fields = rope.to_hf(position if isinstance(position, Rope) else Rope(), length, default, partial=partial)
    return {"max_position_embeddings": longest, **fields}


def config_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    """Raises UserError with every field that is wrong or that Llama does not have."""
    f = Fields(values, ARCHITECTURE)
    s = shared(f, whole=True)
    f.choose("hidden_act", SILU, "silu")
    bias, mlp_bias = f.take("attention_bias", bool, False), f.take("mlp_bias", bool, False)
    position = rope.from_hf(f, s.length)
    f.finish()
    mixer = s.attention(position=position, bias=bias, out_bias=bias)
    return s.uniform(BlockConfig(mixer=mixer, mlp=MlpConfig(d_ff=s.d_ff, bias=mlp_bias), pre=s.norm))


def config_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    """`length`: the longest sequence it is meant for; None: what its RoPE scaling says, or else LENGTH."""
    block, attention, mlp = dense(config, ARCHITECTURE)
    own = {"hidden_act": "silu", "attention_bias": attention.bias, "mlp_bias": mlp.bias}
    return written(config, block, ARCHITECTURE, "llama", **own, **turned(block, length, LENGTH))


LLAMA = Family(
    architecture=ARCHITECTURE,
    model_type="llama",
    rules=RULES,
    from_hf=config_from_hf,
    to_hf=config_to_hf,
    base="model.",
    ignored=IGNORED,
    aliases=ALIASES,
)
