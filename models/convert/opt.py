"""OPTForCausalLM (Zhang et al. 2022): GPT-3's layers with ReLU, and no narrow embeddings (350M)."""

from collections.abc import Mapping
from typing import Any

from pretrain.models.config import (
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
from pretrain.models.convert.gpt2 import ACTIVATIONS, spelled
from pretrain.models.convert.rules import Rule

ARCHITECTURE = "OPTForCausalLM"
LENGTH, OFFSET, EPS = 2048, 2, 1e-5
"""Positions; rows of their table before the first; torch's epsilon, which OPT does not name."""

_theirs, _ours = "model.decoder.layers.{i}.", "decoder/{layer}/"


def _linear(theirs: str, ours: str, pattern: str, bias: str) -> tuple[Rule, Rule]:
    return (
        Rule(_theirs + theirs + ".weight", _ours + ours, pattern),
        Rule(_theirs + theirs + ".bias", _ours + ours + "_bias", bias),
    )


def _norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    names = (("weight", "scale"), ("bias", "bias"))
    return tuple(Rule(f"{theirs}.{a}", f"{ours}/{b}", "d -> d") for a, b in names)


RULES = (
    Rule("model.decoder.embed_tokens.weight", "embed/tokens", "v d -> v d"),
    Rule("model.decoder.embed_positions.weight", "decoder/entry/positions", "t d -> t d"),
    *_linear("self_attn.q_proj", "mixer/query", "(k g h) d -> d k g h", "(k g h) -> k g h"),
    *_linear("self_attn.k_proj", "mixer/key", "(k h) d -> d k h", "(k h) -> k h"),
    *_linear("self_attn.v_proj", "mixer/value", "(k h) d -> d k h", "(k h) -> k h"),
    *_linear("self_attn.out_proj", "mixer/out", "d (k g h) -> k g h d", "d -> d"),
    *_linear("fc1", "mlp/up", "f d -> d f", "f -> f"),
    *_linear("fc2", "mlp/down", "d f -> f d", "d -> d"),
    *_norm(_theirs + "self_attn_layer_norm", _ours + "mixer_norms/pre"),
    *_norm(_theirs + "self_attn_layer_norm", _ours + "mixer_norms/residual"),
    *_norm(_theirs + "final_layer_norm", _ours + "mlp_norms/pre"),
    *_norm(_theirs + "final_layer_norm", _ours + "mlp_norms/residual"),
    *_norm("model.decoder.final_layer_norm", "decoder/final_norm"),
    Rule("lm_head.weight", "head/kernel", "v d -> d v"),
)


def config_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, ARCHITECTURE)
    vocab_size, d_model, layers = (f.size(name) for name in ("vocab_size", "hidden_size", "num_hidden_layers"))
    heads, d_ff, length = f.size("num_attention_heads"), f.size("ffn_dim"), f.size("max_position_embeddings", LENGTH)
    activation = f.choose("activation_function", ACTIVATIONS, "relu")
    affine, bias = f.take("layer_norm_elementwise_affine", bool, True), f.take("enable_bias", bool, True)
    first = f.take("do_layer_norm_before", bool, True)
    last = not f.take("_remove_final_layer_norm", bool, False) and first
    dropout, std = f.take("dropout", float, 0.1), f.take("init_std", float, 0.02)
    tied = f.take("tie_word_embeddings", bool, True)
    f.expect("word_embed_proj_dim", d_model)
    f.skip("attention_dropout", "layerdrop", "activation_dropout", "prefix")  # of training; of generation
    if d_model and heads and d_model % heads:
        f.problems.append(
            f"{f.where}: hidden_size is {d_model}, expected a multiple of num_attention_heads={heads}; correct one"
        )
    f.finish()
    norm = NormConfig(kind="layer", eps=EPS, bias=affine, scale="one" if affine else "none")
    block = BlockConfig(
        mixer=AttentionConfig(heads=heads, kv_heads=heads, head_dim=d_model // heads, bias=bias, out_bias=bias),
        mlp=MlpConfig(d_ff=d_ff, activation=activation, gated=False, bias=bias),
        pre=norm if first else None,
        residual=None if first else norm,
        dropout=dropout,
    )
    positions = LearnedPositions(length=length, offset=OFFSET)
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        embed=EmbedConfig(dropout=0.0),
        decoder=StackConfig(pattern=(block,), repeats=layers, positions=positions, final_norm=norm if last else None),
        head=HeadConfig(tied=tied),
        init=InitConfig(std=std),
    )


def config_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    """`length` says nothing here: the table of positions does."""
    block, attention, mlp = dense(config, ARCHITECTURE)
    norm, positions = block.pre or block.residual or NormConfig(), config.stack.positions
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "opt",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "word_embed_proj_dim": config.d_model,
        "num_hidden_layers": len(config.stack.blocks),
        "num_attention_heads": attention.heads,
        "ffn_dim": mlp.d_ff,
        "max_position_embeddings": positions.length if isinstance(positions, LearnedPositions) else LENGTH,
        "activation_function": spelled(mlp.activation),
        "do_layer_norm_before": block.pre is not None,
        "_remove_final_layer_norm": config.stack.final_norm is None,
        "layer_norm_elementwise_affine": norm.scale != "none",
        "enable_bias": attention.bias,
        "dropout": block.dropout,
        "attention_dropout": 0.0,
        "init_std": config.init.std,
        "tie_word_embeddings": bool(config.head and config.head.tied),
        "use_cache": True,
    }


OPT = Family(
    architecture=ARCHITECTURE,
    model_type="opt",
    rules=RULES,
    from_hf=config_from_hf,
    to_hf=config_to_hf,
    base="model.",
    aliases=(("lm_head.weight", "model.decoder.embed_tokens.weight"),),
)
