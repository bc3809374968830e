"""T5ForConditionalGeneration: T5 and its release 1.1; MT5ForConditionalGeneration, which is the latter; and
UMT5ForConditionalGeneration, where each layer has relative biases of its own."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pretrain.errors import UserError
from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    EmbedConfig,
    HeadConfig,
    InitConfig,
    MlpConfig,
    NormConfig,
    RelativeBias,
    StackConfig,
    TransformerConfig,
)
from pretrain.models.convert.engine import Family
from pretrain.models.convert.fields import Fields, halves
from pretrain.models.convert.gpt2 import ACTIVATIONS, spelled
from pretrain.models.convert.rules import Rule

T5, MT5, UMT5 = "T5ForConditionalGeneration", "MT5ForConditionalGeneration", "UMT5ForConditionalGeneration"
MODEL_TYPES = {T5: "t5", MT5: "mt5", UMT5: "umt5"}
GATED = "gated-"
HEAD, TABLE = "lm_head.weight", "shared.weight"


def _attention(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.q.weight", f"{ours}/query", "(k g h) d -> d k g h"),
        Rule(f"{theirs}.k.weight", f"{ours}/key", "(k h) d -> d k h"),
        Rule(f"{theirs}.v.weight", f"{ours}/value", "(k h) d -> d k h"),
        Rule(f"{theirs}.o.weight", f"{ours}/out", "d (k g h) -> k g h d"),
    )


def _stack(name: str, last: int) -> tuple[Rule, ...]:
    """`last`: the number of the MLP among the branches of a block."""
    first, layer, ours = f"{name}.block.0.layer.0", f"{name}.block.{{i}}.layer", f"{name}/{{layer}}"
    bias, mlp = "SelfAttention.relative_attention_bias.weight", f"{layer}.{last}.DenseReluDense"
    return (
        Rule(f"{first}.{bias}", f"{name}/relative", "n (k g) -> n k g"),
        Rule(f"{layer}.0.{bias}", f"{ours}/mixer/relative", "n (k g) -> n k g"),
        *_attention(f"{layer}.0.SelfAttention", f"{ours}/mixer"),
        Rule(f"{layer}.0.layer_norm.weight", f"{ours}/mixer_norms/pre/scale", "d -> d"),
        *_attention(f"{layer}.1.EncDecAttention", f"{ours}/cross"),
        Rule(f"{layer}.1.layer_norm.weight", f"{ours}/cross_norms/pre/scale", "d -> d"),
        Rule(f"{mlp}.wi.weight", f"{ours}/mlp/up", "f d -> d f", instead=f"{ours}/mlp/gate"),
        Rule(f"{mlp}.wi_0.weight", f"{ours}/mlp/gate", "f d -> d f"),
        Rule(f"{mlp}.wi_1.weight", f"{ours}/mlp/up", "f d -> d f", beside=f"{ours}/mlp/gate"),
        Rule(f"{mlp}.wo.weight", f"{ours}/mlp/down", "d f -> f d"),
        Rule(f"{layer}.{last}.layer_norm.weight", f"{ours}/mlp_norms/pre/scale", "d -> d"),
        Rule(f"{name}.final_layer_norm.weight", f"{name}/final_norm/scale", "d -> d"),
    )


RULES = (
    Rule(TABLE, "embed/tokens", "v d -> v d"),
    *_stack("encoder", 1),
    *_stack("decoder", 2),
    Rule(HEAD, "head/kernel", "v d -> d v"),
)


def both(config: TransformerConfig, architecture: str) -> tuple[StackConfig, StackConfig]:
    """Encoder and decoder; raises UserError for a model with one of them."""
    if config.encoder is None or config.decoder is None:
        found = "an encoder" if config.decoder is None else "a decoder"
        raise UserError(f"found {found} alone in the model, {architecture} has both; export another architecture")
    return config.encoder, config.decoder


def config_from_hf(values: Mapping[str, Any], *, architecture: str = T5) -> TransformerConfig:
    """Raises UserError with every field that is wrong or that the architecture does not have."""
    f = Fields(values, architecture)
    vocab_size, d_model, d_ff = f.size("vocab_size"), f.size("d_model"), f.size("d_ff")
    layers, heads, head_dim = f.size("num_layers"), f.size("num_heads"), f.size("d_kv")
    decoder_layers, dropout = f.size("num_decoder_layers", layers), f.take("dropout_rate", float, 0.1)
    norm = NormConfig(kind="rms", eps=f.take("layer_norm_epsilon", float, 1e-6))
    mlp = _mlp(f, d_ff, "relu" if architecture == T5 else "gated-gelu")
    buckets = f.size("relative_attention_num_buckets", 32)
    distance = f.size("relative_attention_max_distance", 128)
    tied = f.take("tie_word_embeddings", bool, True)
    scaled = architecture != MT5 and f.take("scale_decoder_outputs", bool, tied)
    f.expect("is_decoder", False)
    f.skip("initializer_factor", "is_encoder_decoder", "classifier_dropout", "scalable_attention")
    f.skip("n_positions", "output_past")  # what it was trained on; an old name of a cache
    f.finish()
    position = RelativeBias(buckets=buckets, max_distance=distance, shared=architecture != UMT5)
    mixer = AttentionConfig(heads=heads, kv_heads=heads, head_dim=head_dim, position=position, scale=1.0)
    block = BlockConfig(mixer=mixer, mlp=mlp, pre=norm, dropout=dropout)
    reading = replace(block, mixer=replace(mixer, causal=False))
    writing = replace(block, cross=replace(mixer, causal=False, position=None))
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        embed=EmbedConfig(dropout=dropout),
        encoder=StackConfig(pattern=(reading,), repeats=layers, final_norm=norm),
        decoder=StackConfig(pattern=(writing,), repeats=decoder_layers, final_norm=norm),
        head=HeadConfig(tied=tied, scale=d_model**-0.5 if scaled else None),
        init=InitConfig(kind="t5", embed_std=1.0),
    )


def _mlp(f: Fields, d_ff: int, default: str) -> MlpConfig:
    """ "gated-gelu" is the tanh approximation, "gelu" is not."""
    stated = f.take("feed_forward_proj", str, default)
    gated = stated.startswith(GATED)
    name = "gelu_new" if stated == "gated-gelu" else stated.removeprefix(GATED)
    activation: Any = ACTIVATIONS.get(name, "relu")
    if name not in ACTIVATIONS:
        choices = ", ".join([*ACTIVATIONS, *(GATED + known for known in ACTIVATIONS)])
        f.problems.append(f"{f.where}: feed_forward_proj is {stated!r}, expected one of {choices}")
    f.expect("dense_act_fn", name)
    f.expect("is_gated_act", gated)
    return MlpConfig(d_ff=d_ff or 1, activation=activation, gated=gated)


def refine(config: TransformerConfig, names: Collection[str], *, architecture: str = T5) -> TransformerConfig:
    """The head is the one in the checkpoint, as `transformers` 5 decides, which writes tie_word_embeddings=true beside
    every head; only a T5 that says so, and scales its logits, has a copy there at most."""
    head = config.head
    assert head is not None
    copied = architecture == T5 and head.tied and head.scale is not None
    return replace(config, head=replace(head, tied=copied or HEAD not in names))


def config_to_hf(config: TransformerConfig, length: int | None = None, *, architecture: str = T5) -> dict:
    """`length` says nothing here: distances have no end."""
    encoder, decoder = both(config, architecture)
    block, attention, mlp = halves(decoder, "decoder", architecture)
    position = attention.position if isinstance(attention.position, RelativeBias) else RelativeBias()
    head, gelu = config.head or HeadConfig(), mlp.gated and mlp.activation == "gelu_tanh"
    return {
        "architectures": [architecture],
        "model_type": MODEL_TYPES[architecture],
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": attention.head_dim,
        "d_ff": mlp.d_ff,
        "num_layers": len(encoder.blocks),
        "num_decoder_layers": len(decoder.blocks),
        "num_heads": attention.heads,
        "relative_attention_num_buckets": position.buckets,
        "relative_attention_max_distance": position.max_distance,
        "feed_forward_proj": "gated-gelu" if gelu else GATED * mlp.gated + spelled(mlp.activation),
        "layer_norm_epsilon": block.pre.eps if block.pre else 1e-6,
        "dropout_rate": block.dropout,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "tie_word_embeddings": head.tied,
        **({"scale_decoder_outputs": head.scale is not None} if architecture != MT5 else {}),
        "decoder_start_token_id": 0,
        "use_cache": True,
    }


def _family(architecture: str) -> Family:
    return Family(
        architecture=architecture,
        model_type=MODEL_TYPES[architecture],
        rules=RULES,
        from_hf=partial(config_from_hf, architecture=architecture),
        to_hf=partial(config_to_hf, architecture=architecture),
        base="",
        refine=partial(refine, architecture=architecture),
        ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
        aliases=((HEAD, TABLE), ("encoder.embed_tokens.weight", TABLE), ("decoder.embed_tokens.weight", TABLE)),
        pipeline="text2text-generation",
    )


T5_FAMILY, MT5_FAMILY, UMT5_FAMILY = (_family(name) for name in (T5, MT5, UMT5))
