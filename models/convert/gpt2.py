"""GPT2LMHeadModel: GPT-2 and dense models of the same architecture."""

from collections.abc import Mapping
from typing import Any

from pretrain.models.config import (
    Activation,
    AttentionConfig,
    BlockConfig,
    EmbedConfig,
    HeadConfig,
    InitConfig,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    StackConfig,
    TransformerConfig,
)
from pretrain.models.convert.engine import Family
from pretrain.models.convert.fields import Fields, dense
from pretrain.models.convert.rules import Rule

ARCHITECTURE = "GPT2LMHeadModel"
LENGTH = 1024
"""n_positions of a model without learned positions, which is refused when it is read back."""
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def spelled(activation: Activation) -> str:
    """Its first name in `ACTIVATIONS`; for one that has none there another's, which reads back as another."""
    return next((name for name, ours in ACTIVATIONS.items() if ours == activation), "gelu_new")


RULES = (
    Rule("transformer.wte.weight", "embed/tokens", "v d -> v d"),
    Rule("transformer.wpe.weight", "decoder/entry/positions", "t d -> t d"),
    Rule("transformer.h.{i}.ln_1.weight", "decoder/{layer}/mixer_norms/pre/scale", "d -> d"),
    Rule("transformer.h.{i}.ln_1.bias", "decoder/{layer}/mixer_norms/pre/bias", "d -> d"),
    Rule(
        "transformer.h.{i}.attn.c_attn.weight",
        ("decoder/{layer}/mixer/query", "decoder/{layer}/mixer/key", "decoder/{layer}/mixer/value"),
        ("d (k g h) -> d k g h", "d (k h) -> d k h", "d (k h) -> d k h"),
        axis=1,
    ),
    Rule(
        "transformer.h.{i}.attn.c_attn.bias",
        ("decoder/{layer}/mixer/query_bias", "decoder/{layer}/mixer/key_bias", "decoder/{layer}/mixer/value_bias"),
        ("(k g h) -> k g h", "(k h) -> k h", "(k h) -> k h"),
    ),
    Rule("transformer.h.{i}.attn.c_proj.weight", "decoder/{layer}/mixer/out", "(k g h) d -> k g h d"),
    Rule("transformer.h.{i}.attn.c_proj.bias", "decoder/{layer}/mixer/out_bias", "d -> d"),
    Rule("transformer.h.{i}.ln_2.weight", "decoder/{layer}/mlp_norms/pre/scale", "d -> d"),
    Rule("transformer.h.{i}.ln_2.bias", "decoder/{layer}/mlp_norms/pre/bias", "d -> d"),
    Rule("transformer.h.{i}.mlp.c_fc.weight", "decoder/{layer}/mlp/up", "d f -> d f"),
    Rule("transformer.h.{i}.mlp.c_fc.bias", "decoder/{layer}/mlp/up_bias", "f -> f"),
    Rule("transformer.h.{i}.mlp.c_proj.weight", "decoder/{layer}/mlp/down", "f d -> f d"),
    Rule("transformer.h.{i}.mlp.c_proj.bias", "decoder/{layer}/mlp/down_bias", "d -> d"),
    Rule("transformer.ln_f.weight", "decoder/final_norm/scale", "d -> d"),
    Rule("transformer.ln_f.bias", "decoder/final_norm/bias", "d -> d"),
    Rule("lm_head.weight", "head/kernel", "v d -> d v"),
)


def config_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    """Raises UserError with every field that is wrong or that GPT-2 does not have."""
    f = Fields(values, ARCHITECTURE)
    vocab_size, length = f.size("vocab_size"), f.size("n_positions", LENGTH)
    d_model, layers, heads = f.size("n_embd"), f.size("n_layer"), f.size("n_head")
    d_ff = f.size("n_inner", 4 * d_model if d_model else None)
    activation = f.choose("activation_function", ACTIVATIONS, "gelu_new")
    norm = NormConfig(kind="layer", eps=f.take("layer_norm_epsilon", float, 1e-5), bias=True)
    dropout, embed_dropout = f.take("resid_pdrop", float, 0.1), f.take("embd_pdrop", float, 0.1)
    tied, std = f.take("tie_word_embeddings", bool, True), f.take("initializer_range", float, 0.02)
    scaled = f.take("scale_attn_weights", bool, True)
    f.expect("scale_attn_by_inverse_layer_idx", False)
    f.expect("add_cross_attention", False)
    f.skip("attn_pdrop", "reorder_and_upcast_attn")  # of training; of rounding in half precision
    f.skip("n_ctx", "gradient_checkpointing", *(name for name in values if name.startswith("summary_")))
    if d_model and heads and d_model % heads:
        f.problems.append(f"{f.where}: n_head is {heads}, expected a divisor of n_embd={d_model}; correct one")
    f.finish()
    attention = AttentionConfig(
        heads=heads,
        kv_heads=heads,
        head_dim=d_model // heads,
        bias=True,
        out_bias=True,
        scale=None if scaled else 1.0,
    )
    mlp = MlpConfig(d_ff=d_ff, activation=activation, gated=False, bias=True)
    block = BlockConfig(mixer=attention, mlp=mlp, pre=norm, dropout=dropout)
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        embed=EmbedConfig(dropout=embed_dropout),
        decoder=StackConfig(
            pattern=(block,), repeats=layers, positions=LearnedPositions(length=length), final_norm=norm
        ),
        head=HeadConfig(tied=tied),
        init=InitConfig(std=std, residual="depth"),
    )


def config_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    """`length` says nothing here: the table of positions does."""
    block, attention, mlp = dense(config, ARCHITECTURE)
    norm, positions = block.pre or NormConfig(), config.stack.positions
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": positions.length if isinstance(positions, LearnedPositions) else LENGTH,
        "n_embd": config.d_model,
        "n_layer": len(config.stack.blocks),
        "n_head": attention.heads,
        "n_inner": mlp.d_ff,
        "activation_function": spelled(mlp.activation),
        "layer_norm_epsilon": norm.eps,
        "resid_pdrop": block.dropout,
        "embd_pdrop": config.embed.dropout,
        "attn_pdrop": 0.0,
        "initializer_range": config.init.std,
        "scale_attn_weights": attention.scale is None,
        "tie_word_embeddings": bool(config.head and config.head.tied),
        "use_cache": True,
    }


GPT2 = Family(
    architecture=ARCHITECTURE,
    model_type="gpt2",
    rules=RULES,
    from_hf=config_from_hf,
    to_hf=config_to_hf,
    base="transformer.",
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    aliases=(("lm_head.weight", "transformer.wte.weight"),),
)
