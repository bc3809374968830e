"""GPTNeoXForCausalLM (Black et al. 2022) and Pythia: attention and MLP side by side, each after a norm of its own."""

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
from pretrain.models.convert.rules import Rule, linear, norm

ARCHITECTURE = "GPTNeoXForCausalLM"
LENGTH, PARTIAL = 2048, 0.25

_theirs, _ours = "gpt_neox.layers.{i}.", "decoder/{layer}/"
_parts = tuple(f"{_ours}mixer/{name}" for name in ("query", "key", "value"))
RULES = (
    Rule("gpt_neox.embed_in.weight", "embed/tokens", "v d -> v d"),
    *norm(_theirs + "input_layernorm", _ours + "mixer_norms/pre"),
    *norm(_theirs + "post_attention_layernorm", _ours + "mlp_pre"),
    *norm(_theirs + "post_attention_layernorm", _ours + "mlp_norms/pre"),
    # The query, key and value of each head one after another.
    Rule(
        _theirs + "attention.query_key_value.weight",
        _parts,
        ("(k g h) d -> d k g h", "(k 1 h) d -> d k h", "(k 1 h) d -> d k h"),
        axis="g",
    ),
    Rule(
        _theirs + "attention.query_key_value.bias",
        tuple(f"{part}_bias" for part in _parts),
        ("(k g h) -> k g h", "(k 1 h) -> k h", "(k 1 h) -> k h"),
        axis="g",
    ),
    *linear(_theirs + "attention.dense", _ours + "mixer/out", "d (k g h) -> k g h d", "d -> d"),
    *linear(_theirs + "mlp.dense_h_to_4h", _ours + "mlp/up"),
    *linear(_theirs + "mlp.dense_4h_to_h", _ours + "mlp/down"),
    *norm("gpt_neox.final_layer_norm", "decoder/final_norm"),
    Rule("embed_out.weight", "head/kernel", "v d -> d v"),
)


def config_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, ARCHITECTURE)
    vocab_size, d_model, layers = (f.size(name) for name in ("vocab_size", "hidden_size", "num_hidden_layers"))
    heads, d_ff = f.size("num_attention_heads"), f.size("intermediate_size")
    activation = f.choose("hidden_act", ACTIVATIONS, "gelu")
    eps, bias = f.take("layer_norm_eps", float, 1e-5), f.take("attention_bias", bool, True)
    parallel, dropout = f.take("use_parallel_residual", bool, True), f.take("hidden_dropout", float, 0.0)
    tied, std = f.take("tie_word_embeddings", bool, False), f.take("initializer_range", float, 0.02)
    length = f.size("max_position_embeddings", LENGTH)
    position = rope.from_hf(
        f, length, theta=f.positive("rotary_emb_base", rope.THETA), partial=f.positive("rotary_pct", PARTIAL)
    )
    f.skip("attention_dropout", "classifier_dropout", "is_decoder", "rope_pct")
    if d_model and heads and d_model % heads:
        f.problems.append(f"{f.where}: hidden_size is {d_model}, expected a multiple of num_attention_heads={heads}")
    f.finish()
    normed = NormConfig(kind="layer", eps=eps, bias=True)
    block = BlockConfig(
        mixer=AttentionConfig(
            heads=heads, kv_heads=heads, head_dim=d_model // heads, position=position, bias=bias, out_bias=bias
        ),
        mlp=MlpConfig(d_ff=d_ff, activation=activation, gated=False, bias=True),
        pre=normed,
        parallel="two_norms" if parallel else "no",
        dropout=dropout,
    )
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        embed=EmbedConfig(dropout=dropout),
        decoder=StackConfig(pattern=(block,), repeats=layers, final_norm=normed),
        head=HeadConfig(tied=tied),
        init=InitConfig(std=std),
    )


def config_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    """In both spellings of the rotation's share."""
    block, attention, mlp = dense(config, ARCHITECTURE)
    position = attention.position if isinstance(attention.position, Rope) else Rope()
    longest, fields = rope.to_hf(position, length, LENGTH, partial=True)
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(config.stack.blocks),
        "num_attention_heads": attention.heads,
        "intermediate_size": mlp.d_ff,
        "hidden_act": spelled(mlp.activation),
        "max_position_embeddings": longest,
        "layer_norm_eps": block.pre.eps if block.pre else 1e-5,
        "use_parallel_residual": block.parallel != "no",
        "attention_bias": attention.bias,
        "hidden_dropout": block.dropout,
        "attention_dropout": 0.0,
        "initializer_range": config.init.std,
        "tie_word_embeddings": bool(config.head and config.head.tied),
        "use_cache": True,
        "rotary_pct": position.fraction,
        "rotary_emb_base": position.theta,
        **fields,
    }


NEOX = Family(
    architecture=ARCHITECTURE,
    model_type="gpt_neox",
    rules=RULES,
    from_hf=config_from_hf,
    to_hf=config_to_hf,
    base="gpt_neox.",
    ignored=(r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    aliases=(("embed_out.weight", "gpt_neox.embed_in.weight"),),
)
