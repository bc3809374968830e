"""GPTJForCausalLM (Wang & Komatsuzaki 2021): attention and MLP side by side after one norm, interleaved rotation of a
part of each head."""

from collections.abc import Mapping
from typing import Any

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    EmbedConfig,
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
from pretrain.models.convert.fields import Fields, dense
from pretrain.models.convert.gpt2 import ACTIVATIONS, spelled
from pretrain.models.convert.rules import Rule

ARCHITECTURE = "GPTJForCausalLM"
LENGTH = 2048

_theirs, _ours = "transformer.h.{i}.", "decoder/{layer}/"
RULES = (
    Rule("transformer.wte.weight", "embed/tokens", "v d -> v d"),
    Rule(_theirs + "ln_1.weight", _ours + "mixer_norms/pre/scale", "d -> d"),
    Rule(_theirs + "ln_1.bias", _ours + "mixer_norms/pre/bias", "d -> d"),
    Rule(_theirs + "attn.q_proj.weight", _ours + "mixer/query", "(k g h) d -> d k g h"),
    Rule(_theirs + "attn.k_proj.weight", _ours + "mixer/key", "(k h) d -> d k h"),
    Rule(_theirs + "attn.v_proj.weight", _ours + "mixer/value", "(k h) d -> d k h"),
    Rule(_theirs + "attn.out_proj.weight", _ours + "mixer/out", "d (k g h) -> k g h d"),
    Rule(_theirs + "mlp.fc_in.weight", _ours + "mlp/up", "f d -> d f"),
    Rule(_theirs + "mlp.fc_in.bias", _ours + "mlp/up_bias", "f -> f"),
    Rule(_theirs + "mlp.fc_out.weight", _ours + "mlp/down", "d f -> f d"),
    Rule(_theirs + "mlp.fc_out.bias", _ours + "mlp/down_bias", "d -> d"),
    Rule("transformer.ln_f.weight", "decoder/final_norm/scale", "d -> d"),
    Rule("transformer.ln_f.bias", "decoder/final_norm/bias", "d -> d"),
    Rule("lm_head.weight", "head/kernel", "v d -> d v"),
    Rule("lm_head.bias", "head/bias", "v -> v"),
)


def config_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, ARCHITECTURE)
    vocab_size, d_model, layers, heads = (f.size(name) for name in ("vocab_size", "n_embd", "n_layer", "n_head"))
    d_ff, turned = f.size("n_inner", 4 * d_model if d_model else None), f.size("rotary_dim", 64)
    activation = f.choose("activation_function", ACTIVATIONS, "gelu_new")
    norm = NormConfig(kind="layer", eps=f.take("layer_norm_epsilon", float, 1e-5), bias=True)
    dropout, embed_dropout = f.take("resid_pdrop", float, 0.0), f.take("embd_pdrop", float, 0.0)
    tied, std = f.take("tie_word_embeddings", bool, False), f.take("initializer_range", float, 0.02)
    f.skip("attn_pdrop", "n_positions", "n_ctx", "gradient_checkpointing", "scale_attn_weights", "rotary")
    f.skip(*(name for name in values if name.startswith("summary_")))
    if d_model and heads and d_model % heads:
        f.problems.append(f"{f.where}: n_head is {heads}, expected a divisor of n_embd={d_model}; correct one")
    elif d_model and heads and turned and turned > d_model // heads:
        f.problems.append(f"{f.where}: rotary_dim is {turned}, expected at most the width of a head; correct one")
    f.finish()
    head_dim = d_model // heads
    position = Rope(fraction=rope.fraction(turned, head_dim), interleaved=True)
    block = BlockConfig(
        mixer=AttentionConfig(heads=heads, kv_heads=heads, head_dim=head_dim, position=position),
        mlp=MlpConfig(d_ff=d_ff, activation=activation, gated=False, bias=True),
        pre=norm,
        parallel="one_norm",
        dropout=dropout,
    )
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        embed=EmbedConfig(dropout=embed_dropout),
        decoder=StackConfig(pattern=(block,), repeats=layers, final_norm=norm),
        head=HeadConfig(tied=tied, bias=True),
        init=InitConfig(std=std),
    )


def config_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    block, attention, mlp = dense(config, ARCHITECTURE)
    share = attention.position.fraction if isinstance(attention.position, Rope) else 1.0
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "gptj",
        "vocab_size": config.vocab_size,
        "n_positions": length or LENGTH,
        "n_embd": config.d_model,
        "n_layer": len(config.stack.blocks),
        "n_head": attention.heads,
        "n_inner": mlp.d_ff,
        "rotary_dim": max(1, int(attention.head_dim * share)),
        "activation_function": spelled(mlp.activation),
        "layer_norm_epsilon": block.pre.eps if block.pre else 1e-5,
        "resid_pdrop": block.dropout,
        "embd_pdrop": config.embed.dropout,
        "attn_pdrop": 0.0,
        "initializer_range": config.init.std,
        "tie_word_embeddings": bool(config.head and config.head.tied),
        "use_cache": True,
    }


GPTJ = Family(
    architecture=ARCHITECTURE,
    model_type="gptj",
    rules=RULES,
    from_hf=config_from_hf,
    to_hf=config_to_hf,
    base="transformer.",
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    aliases=(("lm_head.weight", "transformer.wte.weight"),),
)
