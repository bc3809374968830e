"""ModernBertModel and ModernBertForMaskedLM (Warner et al. 2024)."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
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
    TransformConfig,
    TransformerConfig,
)
from pretrain.models.convert import bert, rope
from pretrain.models.convert.bert import Kind
from pretrain.models.convert.engine import Family
from pretrain.models.convert.fields import Fields, dense
from pretrain.models.convert.gpt2 import ACTIVATIONS, spelled
from pretrain.models.convert.periods import FULL, SLIDING, attentions, kinds, stack, types
from pretrain.models.convert.rules import Rule, linear, norm

PREFIX, PERIOD_FIELD = "ModernBert", "global_attn_every_n_layers"
LENGTH, WIDE, EPS, STD, PERIOD = 8192, 128, 1e-5, 0.02, 3
"""Of a config.json that does not say, as in `transformers`; WIDE is the width of a window, both sides."""
THETAS = {FULL: 160_000.0, SLIDING: 10_000.0}
OLD = {FULL: "global_rope_theta", SLIDING: "local_rope_theta"}

_theirs, _ours = "model.layers.{i}.", "encoder/{layer}/"
RULES = (
    Rule("model.embeddings.tok_embeddings.weight", "embed/tokens", "v d -> v d"),
    *norm("model.embeddings.norm", "encoder/entry/norm"),
    *norm(_theirs + "attn_norm", _ours + "mixer_norms/pre"),
    Rule(
        _theirs + "attn.Wqkv.weight",
        tuple(f"{_ours}mixer/{name}" for name in ("query", "key", "value")),
        ("(k g h) d -> d k g h", "(k h) d -> d k h", "(k h) d -> d k h"),
    ),
    Rule(
        _theirs + "attn.Wqkv.bias",
        tuple(f"{_ours}mixer/{name}_bias" for name in ("query", "key", "value")),
        ("(k g h) -> k g h", "(k h) -> k h", "(k h) -> k h"),
    ),
    *linear(_theirs + "attn.Wo", _ours + "mixer/out", "d (k g h) -> k g h d", "d -> d"),
    *norm(_theirs + "mlp_norm", _ours + "mlp_norms/pre"),
    Rule(_theirs + "mlp.Wi.weight", (_ours + "mlp/gate", _ours + "mlp/up"), ("f d -> d f", "f d -> d f")),
    Rule(_theirs + "mlp.Wi.bias", (_ours + "mlp/gate_bias", _ours + "mlp/up_bias"), ("f -> f", "f -> f")),
    *linear(_theirs + "mlp.Wo", _ours + "mlp/down"),
    *norm("model.final_norm", "encoder/final_norm"),
    *linear("head.dense", "head/transform"),
    *norm("head.norm", "head/norm"),
    Rule("decoder.bias", "head/bias", "v -> v"),
    Rule("decoder.weight", "head/kernel", "v d -> d v"),
)


def config_from_hf(kind: Kind, values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, PREFIX + kind.suffix)
    vocab_size, d_model, layers = (f.size(name) for name in ("vocab_size", "hidden_size", "num_hidden_layers"))
    heads, d_ff, period = f.size("num_attention_heads"), f.size("intermediate_size"), f.size(PERIOD_FIELD, PERIOD)
    activation = f.choose("hidden_activation", ACTIVATIONS, "gelu")
    layer = NormConfig(kind="layer", eps=f.take("norm_eps", float, EPS), bias=f.take("norm_bias", bool, False))
    bias, mlp_bias = f.take("attention_bias", bool, False), f.take("mlp_bias", bool, False)
    wide, std, dropout = _wide(f), f.take("initializer_range", float, STD), f.take("embedding_dropout", float, 0.0)
    found = kinds(f, layers, lambda i: SLIDING if i % (period or PERIOD) else FULL)
    ropes = _ropes(f, f.size("max_position_embeddings", LENGTH))
    head = _head(kind, f, layer)
    f.skip("attention_dropout", "mlp_dropout", "deterministic_flash_attn", "reference_compile")  # of training; of speed
    f.skip("initializer_cutoff_factor", "gradient_checkpointing", "repad_logits_with_grad", "cls_token_id")
    f.skip("sparse_prediction", "sparse_pred_ignore_index", "layer_norm_eps")  # which logits are made; never read
    f.skip("classifier_pooling", "classifier_dropout", "position_embedding_type")  # of other heads; never read
    if d_model and heads and d_model % heads:
        f.problems.append(
            f"{f.where}: hidden_size is {d_model}, expected a multiple of num_attention_heads={heads}; correct one"
        )
    f.finish()
    mixer = AttentionConfig(
        heads=heads, kv_heads=heads, head_dim=d_model // heads, causal=False, bias=bias, out_bias=bias
    )
    mlp = MlpConfig(d_ff=d_ff, activation=activation, gated=True, bias=mlp_bias)
    blocks = [
        BlockConfig(
            mixer=replace(mixer, position=ropes[name], window=wide // 2 + 1 if name == SLIDING else None),
            mlp=mlp,
            pre=layer,
            mixer_pre=i > 0,
        )
        for i, name in enumerate(found)
    ]
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        embed=EmbedConfig(dropout=dropout),
        encoder=replace(stack(blocks, layer), embed_norm=layer),
        head=head,
        init=InitConfig(kind="truncated", std=std),
    )


def _wide(f: Fields) -> int:
    """Tokens that a windowed layer sees: half of them to each side, and the token itself."""
    return f.size("local_attention", WIDE) or WIDE


def _ropes(f: Fields, length: int) -> dict[str, Rope]:
    """In `rope_parameters`, one set a kind of layer, or in two thetas."""
    nested = {**f.take("rope_parameters", dict, {})}
    out = {}
    for kind, theta in THETAS.items():
        old, new = f.positive(OLD[kind], None), nested.pop(kind, None) or {}
        new = new if isinstance(new, dict) else {}
        if old is not None and new.setdefault("rope_theta", old) != old:
            f.problems.append(f"{f.where}: {OLD[kind]} is {old} and {new['rope_theta']!r} in {kind}; keep one of them")
        out[kind] = rope.one(new, f, length, theta=theta)
    if nested:
        f.problems.append(f"{f.where}: rope_parameters has {min(nested)!r:.40}, expected {FULL} and {SLIDING} only")
    return out


def _head(kind: Kind, f: Fields, layer: NormConfig) -> HeadConfig | None:
    tied, bias = f.take("tie_word_embeddings", bool, True), f.take("decoder_bias", bool, True)
    transform = TransformConfig(
        activation=f.choose("classifier_activation", ACTIVATIONS, "gelu"),
        bias=f.take("classifier_bias", bool, False),
        norm=layer,
    )
    return HeadConfig(tied=tied, bias=bias, transform=transform) if kind.head else None


def config_to_hf(kind: Kind, config: TransformerConfig, length: int | None = None) -> dict:
    """In both spellings of rotary positions."""
    block, attention, mlp = dense(config, PREFIX + kind.suffix, "encoder")
    layer, head = block.pre or NormConfig(), config.head or HeadConfig()
    transform = head.transform or TransformConfig(bias=False)
    position = {name: m.position for name, m in zip(types(config), attentions(config)) if isinstance(m.position, Rope)}
    ropes = {name: position.get(name, Rope(theta=theta)) for name, theta in THETAS.items()}
    scalings = {name: rope.written(r, length, LENGTH) for name, r in ropes.items()}
    return {
        "architectures": [PREFIX + kind.suffix],
        "model_type": "modernbert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(config.stack.blocks),
        "num_attention_heads": attention.heads,
        "intermediate_size": mlp.d_ff,
        "hidden_activation": spelled(mlp.activation),
        "max_position_embeddings": scalings[FULL][1],
        "norm_eps": layer.eps,
        "norm_bias": layer.bias,
        "attention_bias": attention.bias,
        "mlp_bias": mlp.bias,
        "embedding_dropout": config.embed.dropout,
        "initializer_range": config.init.std,
        "layer_types": types(config),
        "local_attention": 2 * (next((m.window for m in attentions(config) if m.window), WIDE // 2 + 1) - 1),
        "rope_parameters": {name: {**scalings[name][0], "rope_theta": r.theta} for name, r in ropes.items()},
        **{OLD[name]: r.theta for name, r in ropes.items()},
        "decoder_bias": head.bias,
        "classifier_activation": spelled(transform.activation),
        "classifier_bias": transform.bias,
        "tie_word_embeddings": head.tied if config.head else True,
        "sparse_prediction": False,
    }


MODERNBERT = tuple(
    Family(
        architecture=PREFIX + kind.suffix,
        model_type="modernbert",
        rules=RULES,
        from_hf=partial(config_from_hf, kind),
        to_hf=partial(config_to_hf, kind),
        base="model.",
        bare=kind.suffix == "Model",
        aliases=(("decoder.weight", "model.embeddings.tok_embeddings.weight"),),
        outputs=kind.outputs,
        pipeline=kind.pipeline,
    )
    for kind in (bert.model(), bert.MASKED)
)
