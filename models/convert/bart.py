"""BartForConditionalGeneration and MBartForConditionalGeneration; and what Pegasus and Marian share with them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    EmbedConfig,
    HeadConfig,
    InitConfig,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    SinusoidalPositions,
    StackConfig,
    TransformerConfig,
)
from pretrain.models.convert.engine import Constant, Family, hidden
from pretrain.models.convert.fields import Fields, halves
from pretrain.models.convert.gpt2 import ACTIVATIONS, spelled
from pretrain.models.convert.rules import Rule, attention, linear, norm
from pretrain.models.convert.t5 import both

BASE = "model."
BART, MBART = "BartForConditionalGeneration", "MBartForConditionalGeneration"
LENGTH, OFFSET, EPS = 1024, 2, 1e-5
"""Positions; rows of their table before the first; torch's epsilon, which no config names."""
TABLE = f"{BASE}shared.weight"


def _attention(theirs: str, ours: str, branch: str) -> tuple[Rule, ...]:
    """A branch and its norm, which stands before or after it."""
    query, key, value, out = (f"{theirs}.{name}_proj" for name in ("q", "k", "v", "out"))
    return (
        *attention((query, key, value, out), f"{ours}/{branch}"),
        *norm(f"{theirs}_layer_norm", f"{ours}/{branch}_norms/pre"),
        *norm(f"{theirs}_layer_norm", f"{ours}/{branch}_norms/residual"),
    )


def _stack(name: str) -> tuple[Rule, ...]:
    theirs, layer, ours = f"model.{name}", f"model.{name}.layers.{{i}}", f"{name}/{{layer}}"
    return (
        Rule(f"{theirs}.embed_positions.weight", f"{name}/entry/positions", "t d -> t d"),
        *norm(f"{theirs}.layernorm_embedding", f"{name}/entry/norm"),
        *_attention(f"{layer}.self_attn", ours, "mixer"),
        *_attention(f"{layer}.encoder_attn", ours, "cross"),
        *linear(f"{layer}.fc1", f"{ours}/mlp/up"),
        *linear(f"{layer}.fc2", f"{ours}/mlp/down"),
        *norm(f"{layer}.final_layer_norm", f"{ours}/mlp_norms/pre"),
        *norm(f"{layer}.final_layer_norm", f"{ours}/mlp_norms/residual"),
        *norm(f"{theirs}.layer_norm", f"{name}/final_norm"),
    )


RULES = (
    Rule(TABLE, "embed/tokens", "v d -> v d"),
    *_stack("encoder"),
    *_stack("decoder"),
    Rule("final_logits_bias", "head/bias", "1 v -> v"),
)


@dataclass(frozen=True, kw_only=True)
class Style:
    """In what these architectures differ, which none of their configs says."""

    architecture: str
    model_type: str
    pre_norm: bool = False
    """LayerNorm before each branch and after the last layer."""
    embed_norm: bool = False
    learned: bool = False
    """Positions; else sines."""
    logits_bias: bool = False
    """Is trained; else zeros are written."""
    stores_sines: bool = False


def config_from_hf(values: Mapping[str, Any], *, style: Style) -> TransformerConfig:
    """Raises UserError with every field that is wrong or that the architecture does not have.

    `attention_bias` and `final_logits_bias` are ours: a model without these biases is written with zeros.
    """
    f = Fields(values, style.architecture)
    vocab_size, d_model = f.size("vocab_size"), f.size("d_model")
    length, dropout = f.size("max_position_embeddings", LENGTH), f.take("dropout", float, 0.1)
    activation, std = f.choose("activation_function", ACTIVATIONS, "gelu"), f.take("init_std", float, 0.02)
    scaled, bias = f.take("scale_embedding", bool, False), f.take("attention_bias", bool, True)
    logits_bias = f.take("final_logits_bias", bool, style.logits_bias)
    norm = NormConfig(kind="layer", eps=EPS, bias=True)
    positions = LearnedPositions(length=length or 1, offset=OFFSET) if style.learned else SinusoidalPositions()

    def stack(name: str, causal: bool) -> StackConfig:
        layers, heads, d_ff = (f.size(f"{name}_{n}") for n in ("layers", "attention_heads", "ffn_dim"))
        if d_model and heads and d_model % heads:
            f.problems.append(f"{f.where}: {name}_attention_heads is {heads}, expected a divisor of d_model={d_model}")
        heads, width = heads or 1, d_model or 1
        mixer = AttentionConfig(
            heads=heads, kv_heads=heads, head_dim=width // heads or 1, causal=causal, bias=bias, out_bias=bias
        )
        mlp = MlpConfig(d_ff=d_ff or 1, activation=activation, gated=False, bias=True)
        cross = replace(mixer, causal=False) if causal else None
        before, after = (norm, None) if style.pre_norm else (None, norm)
        block = BlockConfig(mixer=mixer, cross=cross, mlp=mlp, pre=before, residual=after, dropout=dropout)
        return StackConfig(
            pattern=(block,),
            repeats=layers or 1,
            positions=positions,
            embed_norm=norm if style.embed_norm else None,
            final_norm=norm if style.pre_norm else None,
        )

    encoder, decoder = stack("encoder", False), stack("decoder", True)
    for name, value in (("tie_word_embeddings", True), ("share_encoder_decoder_embeddings", True)):
        f.expect(name, value)
    f.expect("decoder_vocab_size", vocab_size)
    f.expect("is_decoder", False)
    f.skip(*SKIPPED)
    f.finish()
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        embed=EmbedConfig(scale=d_model**0.5 if scaled else None, dropout=dropout),
        encoder=encoder,
        decoder=decoder,
        head=HeadConfig(tied=True, bias=logits_bias),
        init=InitConfig(std=std),
    )


SKIPPED = (
    *("attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop"),  # of training
    *("classifier_dropout", "classif_dropout", "gradient_checkpointing"),
    *("forced_bos_token_id", "forced_eos_token_id", "no_repeat_ngram_size", "bad_words_ids", "prefix"),  # of generation
    *("force_bos_token_to_be_generated", "output_past"),
    *("num_hidden_layers", "is_encoder_decoder"),  # said again elsewhere
    *("normalize_before", "normalize_embedding", "add_final_layer_norm", "static_position_embeddings"),  # the style
    "extra_pos_embeddings",
)
"""Without effect on logits; `transformers` reads none of the last two lines either."""


def config_to_hf(config: TransformerConfig, length: int | None = None, *, style: Style) -> dict:
    """`length`: the longest sequence a model with sines is meant for; None: LENGTH."""
    fields: dict[str, Any] = {}
    for name, stack in zip(("encoder", "decoder"), both(config, style.architecture)):
        block, attention, mlp = halves(stack, name, style.architecture)
        fields |= {f"{name}_layers": len(stack.blocks), f"{name}_attention_heads": attention.heads}
        fields |= {f"{name}_ffn_dim": mlp.d_ff, "activation_function": spelled(mlp.activation)}
        fields |= {"dropout": block.dropout, "attention_bias": attention.bias}
        if isinstance(stack.positions, LearnedPositions):
            length = stack.positions.length
    biased = bool(config.head and config.head.bias)
    own = {"attention_bias": True, "final_logits_bias": style.logits_bias}  # what need not be said
    said = {"final_logits_bias": biased, **fields}
    return {
        "architectures": [style.architecture],
        "model_type": style.model_type,
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "max_position_embeddings": length or LENGTH,
        "scale_embedding": config.embed.scale is not None,
        "init_std": config.init.std,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "decoder_start_token_id": 0,
        "forced_eos_token_id": None,
        "use_cache": True,
        **{name: value for name, value in said.items() if own.get(name, not value) != value},
    }


def _no_bias(config: TransformerConfig, length: int | None = None) -> np.ndarray | None:
    """Of the logits."""
    return None if config.head and config.head.bias else np.zeros((1, config.vocab_size), np.float32)


def _zeros(config: TransformerConfig, length: int | None, *, stack: str, part: str, name: str) -> np.ndarray | None:
    """The biases of one map of an attention that has none."""
    a = getattr(getattr(config, stack).blocks[0], part)
    if a is None or (a.out_bias if name == "out" else a.bias):
        return None
    return np.zeros(config.d_model if name == "out" else a.heads * a.head_dim, np.float32)


def _sines(config: TransformerConfig, length: int | None, *, stack: str) -> np.ndarray | None:
    positions = getattr(config, stack).positions
    if not isinstance(positions, SinusoidalPositions):
        return None
    frequency = positions.theta ** (-np.arange(0, config.d_model, 2) / config.d_model)
    angle = np.arange(length or LENGTH)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)[:, : config.d_model].astype(np.float32)


def _constants(style: Style) -> Iterator[Constant]:
    yield Constant("final_logits_bias", _no_bias)
    for stack in ("encoder", "decoder"):
        sines = partial(_sines, stack=stack)
        table = f"model.{stack}.embed_positions.weight"
        yield Constant(table, sines, written=style.stores_sines, tolerance=1e-6)
        for theirs, part in (("self_attn", "mixer"), ("encoder_attn", "cross")):
            for name in ("q", "k", "v", "out"):
                zeros = partial(_zeros, stack=stack, part=part, name=name)
                yield Constant(f"model.{stack}.layers.{{i}}.{theirs}.{name}_proj.bias", zeros, stack=stack)


def family(style: Style) -> Family:
    tables = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    return Family(
        architecture=style.architecture,
        model_type=style.model_type,
        rules=RULES,
        from_hf=partial(config_from_hf, style=style),
        to_hf=partial(config_to_hf, style=style),
        base=BASE,
        ignored=(r"(model\.)?(encoder|decoder)\.version",),
        aliases=tuple((name, TABLE) for name in ("lm_head.weight", *tables, *(BASE + table for table in tables))),
        constants=tuple(_constants(style)),
        pipeline="text2text-generation",
    )


BART_FAMILY = family(Style(architecture=BART, model_type="bart", embed_norm=True, learned=True))
MBART_FAMILY = family(Style(architecture=MBART, model_type="mbart", pre_norm=True, embed_norm=True, learned=True))
BART_MODEL = replace(BART_FAMILY, architecture="BartModel", bare=True, outputs={"last_hidden_state": hidden})
"""What Facebook's checkpoints call themselves."""
