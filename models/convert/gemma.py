"""GemmaForCausalLM, Gemma2ForCausalLM and Gemma3ForCausalLM (Gemma team 2024a, 2024b, 2025): the text models."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pretrain.models.config import BlockConfig, EmbedConfig, HeadConfig, MlpConfig, Rope, TransformerConfig
from pretrain.models.convert import llama, rope
from pretrain.models.convert.engine import Family
from pretrain.models.convert.fields import Fields, dense
from pretrain.models.convert.periods import FULL, SLIDING, attentions, kinds, stack, types
from pretrain.models.convert.qwen import NORMS
from pretrain.models.convert.rules import Rule

GEMMA, GEMMA2, GEMMA3 = "GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"
LENGTH, LENGTH3 = 8192, 131072
WINDOW, HEAD_DIM, KV_HEADS, KV_HEADS2, VOCAB3 = 4096, 256, 16, 4, 262_208
GLOBAL_THETA, LOCAL_THETA = 1e6, 1e4
"""Of a config.json that does not say, as in `transformers`; base of Gemma 3's full and sliding attention."""

_layer = "model.layers.{i}."
RULES2 = (
    *(rule for rule in llama.RULES if "post_attention_layernorm" not in rule.theirs),
    Rule(_layer + "post_attention_layernorm.weight", "decoder/{layer}/mixer_norms/branch/scale", "d -> d"),
    Rule(_layer + "pre_feedforward_layernorm.weight", "decoder/{layer}/mlp_norms/pre/scale", "d -> d"),
    Rule(_layer + "post_feedforward_layernorm.weight", "decoder/{layer}/mlp_norms/branch/scale", "d -> d"),
)


def _activation(f: Fields) -> None:
    """`gelu` in the first release's config.json means the tanh form too."""
    f.choose("hidden_act", dict.fromkeys(["gelu_pytorch_tanh", "gelu", "gelu_new"]), "gelu_pytorch_tanh")
    f.choose("hidden_activation", dict.fromkeys(["gelu_pytorch_tanh", "gelu_new"]), "gelu_pytorch_tanh")


def _block(s: llama.Shared, **mixer: Any) -> BlockConfig:
    mlp = MlpConfig(d_ff=s.d_ff, activation="gelu_tanh")
    return BlockConfig(mixer=s.attention(**mixer), mlp=mlp, pre=s.norm)


def _embed(s: llama.Shared) -> EmbedConfig:
    return EmbedConfig(scale=s.d_model**0.5)


def gemma_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, GEMMA)
    s = llama.shared(f, length=LENGTH, kv_heads=KV_HEADS, head_dim=HEAD_DIM, tied=True, scale="zero")
    _activation(f)
    bias = f.take("attention_bias", bool, False)
    position = rope.from_hf(f, s.length)
    f.finish()
    return s.uniform(_block(s, position=position, bias=bias, out_bias=bias), embed=_embed(s))


def _later(f: Fields, s: llama.Shared, period: int, ropes: dict[str, Rope], *, final: float | None, **mixer: Any):
    """What Gemma 2 and 3 say beyond Gemma. `final`: the logits' softcap where nothing is said."""
    _activation(f)
    bias, window = f.take("attention_bias", bool, False), f.optional("sliding_window", WINDOW, int)
    divisor = f.positive("query_pre_attn_scalar", HEAD_DIM)
    final = f.optional("final_logit_softcapping", final)
    found = kinds(f, s.layers, lambda i: SLIDING if (i + 1) % period else FULL)
    f.finish()
    scale = None if divisor == s.head_dim else divisor**-0.5
    mixer |= {"bias": bias, "out_bias": bias, "scale": scale}
    blocks = [
        replace(
            _block(s, **mixer, position=ropes[kind], window=window if kind == SLIDING else None),
            branch=s.norm,
        )
        for kind in found
    ]
    return s.model(stack(blocks, s.norm), embed=_embed(s), head=HeadConfig(tied=s.tied, softcap=final))


def gemma2_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, GEMMA2)
    s = llama.shared(f, length=LENGTH, kv_heads=KV_HEADS2, head_dim=HEAD_DIM, tied=True, scale="zero", whole=True)
    position = rope.from_hf(f, s.length)
    softcap = f.optional("attn_logit_softcapping", 50.0)
    return _later(f, s, 2, {SLIDING: position, FULL: position}, final=30.0, softcap=softcap)


def gemma3_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields({"vocab_size": VOCAB3, **values}, GEMMA3)
    s = llama.shared(f, length=LENGTH3, kv_heads=KV_HEADS2, head_dim=HEAD_DIM, tied=True, scale="zero", whole=True)
    period = f.size("sliding_window_pattern", f.size("_sliding_window_pattern", 6))
    f.expect("attn_logit_softcapping", None)  # which `transformers` does not read
    return _later(f, s, period, _ropes(f, s.length), final=None, qk_norm=s.norm)


def _ropes(f: Fields, length: int) -> dict[str, Rope]:
    """Of the full and the sliding layers: nested in rope_parameters, or rope_theta, rope_scaling (of the full ones) and
    rope_local_base_freq."""
    nested = {**f.take("rope_parameters", dict, {})}
    outside = {"rope_theta": f.take("rope_theta", float, None)} | f.take("rope_scaling", dict, {})
    local = {"rope_theta": f.take("rope_local_base_freq", float, None)}
    out = {}
    for kind, old, theta in ((FULL, outside, GLOBAL_THETA), (SLIDING, local, LOCAL_THETA)):
        new = nested.pop(kind, None)
        new = new if isinstance(new, dict) else {}
        old = {("rope_type" if key == "type" else key): value for key, value in old.items() if value is not None}
        if clash := [key for key in old if key in new and new[key] != old[key]]:
            f.problems.append(
                f"{f.where}: {clash[0]} is {old[clash[0]]!r} and {new[clash[0]]!r} in {kind}; keep one of them"
            )
        out[kind] = rope.one({**old, **new}, f, length, theta=theta)
    if nested:
        f.problems.append(f"{f.where}: rope_parameters has {min(nested)!r:.40}, expected {FULL} and {SLIDING} only")
    return out


def gemma_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    block, attention, _ = dense(config, GEMMA)
    own = {"hidden_act": "gelu_pytorch_tanh", "attention_bias": attention.bias}
    return llama.written(config, block, GEMMA, "gemma", **own, **llama.turned(block, length, LENGTH))


def _later_fields(config: TransformerConfig) -> dict[str, Any]:
    mixers = attentions(config)
    scale = mixers[0].scale
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": mixers[0].bias,
        "query_pre_attn_scalar": mixers[0].head_dim if scale is None else max(1, round(scale**-2)),
        "sliding_window": next((mixer.window for mixer in mixers if mixer.window), WINDOW),
        "attn_logit_softcapping": mixers[0].softcap,
        "final_logit_softcapping": config.head and config.head.softcap,
        "layer_types": types(config),
    }


def gemma2_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    block, _, _ = dense(config, GEMMA2)
    own = _later_fields(config)
    return llama.written(config, block, GEMMA2, "gemma2", **own, **llama.turned(block, length, LENGTH))


def gemma3_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    """In both spellings: nested rope_parameters, and the names from before."""
    block, _, _ = dense(config, GEMMA3)
    found = dict(zip(reversed(types(config)), reversed([mixer.position for mixer in attentions(config)])))
    turn, slide = (found.get(kind) for kind in (FULL, SLIDING))
    turn = turn if isinstance(turn, Rope) else Rope(theta=GLOBAL_THETA)
    slide = slide if isinstance(slide, Rope) else Rope(theta=LOCAL_THETA)
    scaling, longest = rope.written(turn, length, LENGTH3)
    local, _ = rope.written(slide, length, LENGTH3)
    own = {
        **_later_fields(config),
        "max_position_embeddings": longest,
        "rope_parameters": {
            FULL: {**scaling, "rope_theta": turn.theta},
            SLIDING: {**local, "rope_theta": slide.theta},
        },
        "rope_theta": turn.theta,
        "rope_scaling": None if turn.scaling is None else scaling,
        "rope_local_base_freq": slide.theta,
    }
    return llama.written(config, block, GEMMA3, "gemma3_text", **own)


GEMMA_FAMILY = Family(
    architecture=GEMMA,
    model_type="gemma",
    rules=llama.RULES,
    from_hf=gemma_from_hf,
    to_hf=gemma_to_hf,
    base="model.",
    ignored=llama.IGNORED,
    aliases=llama.ALIASES,
)
GEMMA2_FAMILY = replace(
    GEMMA_FAMILY,
    architecture=GEMMA2,
    model_type="gemma2",
    rules=RULES2,
    from_hf=gemma2_from_hf,
    to_hf=gemma2_to_hf,
)
GEMMA3_FAMILY = replace(
    GEMMA_FAMILY,
    architecture=GEMMA3,
    model_type="gemma3_text",
    rules=RULES2 + NORMS,
    from_hf=gemma3_from_hf,
    to_hf=gemma3_to_hf,
)
