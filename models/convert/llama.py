"""LlamaForCausalLM: Llama 1, 2, 3 and models of the same architecture."""

from collections.abc import Mapping
from typing import Any

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
from pretrain.models.convert.engine import Family, Rule
from pretrain.models.convert.fields import Fields, decoder

ARCHITECTURE = "LlamaForCausalLM"
LENGTH = 2048
"""max_position_embeddings of a model that does not say, as in `transformers`."""

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


def config_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    """Raises UserError with every field that is wrong or that Llama does not have."""
    f = Fields(values, ARCHITECTURE)
    d_model, heads = f.size("hidden_size"), f.size("num_attention_heads")
    kv_heads = f.size("num_key_value_heads", heads)
    head_dim = f.size("head_dim", d_model // heads if d_model and heads else None)
    layers, d_ff, vocab_size = f.size("num_hidden_layers"), f.size("intermediate_size"), f.size("vocab_size")
    f.choose("hidden_act", {"silu": "silu", "swish": "silu"}, "silu")
    norm = NormConfig(kind="rms", eps=f.take("rms_norm_eps", float, 1e-6))
    bias, mlp_bias = f.take("attention_bias", bool, False), f.take("mlp_bias", bool, False)
    tied, std = f.take("tie_word_embeddings", bool, False), f.take("initializer_range", float, 0.02)
    position = rope.from_hf(f, length=f.size("max_position_embeddings", LENGTH))
    if d_model and heads and d_model % heads:
        f.problems.append(f"{f.where}: hidden_size is {d_model}, expected a multiple of num_attention_heads={heads}")
    f.skip("attention_dropout", "pretraining_tp")  # of training; of how a matrix product is cut, not of its result
    f.finish()
    attention = AttentionConfig(
        heads=heads, kv_heads=kv_heads, head_dim=head_dim, position=position, bias=bias, out_bias=bias
    )
    block = BlockConfig(mixer=attention, mlp=MlpConfig(d_ff=d_ff, bias=mlp_bias), pre=norm)
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        decoder=StackConfig(pattern=(block,), repeats=layers, final_norm=norm),
        head=HeadConfig(tied=tied),
        init=InitConfig(std=std),
    )


def config_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    """`length`: the longest sequence it is meant for; None: what its RoPE scaling says, or else LENGTH."""
    block = decoder(config, ARCHITECTURE)
    attention, norm = block.mixer, block.pre or NormConfig()
    longest, position = rope.to_hf(attention.position or Rope(), length, LENGTH)
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": block.mlp.d_ff if block.mlp else 1,
        "num_hidden_layers": len(config.stack.blocks),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": longest,
        "rms_norm_eps": norm.eps,
        "initializer_range": config.init.std,
        "tie_word_embeddings": config.head.tied,
        "attention_bias": attention.bias,
        "attention_dropout": 0.0,
        "mlp_bias": bool(block.mlp and block.mlp.bias),
        "use_cache": True,
        **position,
    }


LLAMA = Family(
    architecture=ARCHITECTURE,
    model_type="llama",
    rules=RULES,
    from_hf=config_from_hf,
    to_hf=config_to_hf,
    base="model.",
    ignored=(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"(model\.)?rotary_emb\.inv_freq"),
    aliases=(("lm_head.weight", "model.embed_tokens.weight"),),
)
