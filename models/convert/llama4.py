"""Llama4ForCausalLM (Meta 2025): the text model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    MlpConfig,
    MoeConfig,
    QueryGrowth,
    Rope,
    RouterConfig,
    TransformerConfig,
)
from pretrain.models.convert import llama, rope
from pretrain.models.convert.engine import Family
from pretrain.models.convert.fields import Fields
from pretrain.models.convert.mixtral import balance_loss, coefficient, mixture
from pretrain.models.convert.periods import CHUNKED, FULL, attentions, bounded, kinds, stack, types
from pretrain.models.convert.rules import Rule
from pretrain.models.convert.smollm3 import turning

ARCHITECTURE = "Llama4ForCausalLM"
LENGTH, THETA, KV_HEADS, HEAD_DIM, EXPERTS, CHUNK, PERIOD = 131072, 5e5, 8, 128, 16, 8192, 4
D_FF, D_FF_DENSE = 8192, 16384
"""Of a config.json that does not say, as in `transformers`."""

_theirs, _ours = "model.layers.{i}.feed_forward.", "decoder/{layer}/mlp/"
_experts, _shared = _theirs + "experts.", _theirs + "shared_expert."
RULES = (
    *(replace(rule, theirs=rule.theirs.replace(".mlp.", ".feed_forward.")) for rule in llama.RULES),
    Rule(_theirs + "router.weight", _ours + "router", "e d -> d e"),
    Rule(_experts + "gate_up_proj", (_ours + "gate", _ours + "up"), ("e d f -> e d f", "e d f -> e d f"), axis=2),
    Rule(_experts + "down_proj", _ours + "down", "e f d -> e f d"),
    Rule(_shared + "gate_proj.weight", _ours + "shared/gate", "f d -> d f"),
    Rule(_shared + "up_proj.weight", _ours + "shared/up", "f d -> d f"),
    Rule(_shared + "down_proj.weight", _ours + "shared/down", "d f -> f d"),
)


def config_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, ARCHITECTURE)
    s = llama.shared(f, length=LENGTH, eps=1e-5, kv_heads=KV_HEADS, head_dim=HEAD_DIM, d_ff=D_FF)
    f.choose("hidden_act", llama.SILU, "silu")
    bias, normed = f.take("attention_bias", bool, False), f.take("use_qk_norm", bool, True)
    chunk = f.optional("attention_chunk_size", CHUNK, int)
    growth = QueryGrowth(floor=f.positive("floor_scale", 8192.0), scale=f.positive("attn_scale", 0.1))
    grows = bool(f.take("attn_temperature_tuning", int if values.get("attn_temperature_tuning") == 4 else bool, True))
    position = rope.from_hf(f, s.length, theta=THETA, interleaved=True)
    turns = turning(f, s.layers, PERIOD)
    found = kinds(f, s.layers, lambda i: CHUNKED if turns[i] else FULL, (CHUNKED, FULL))
    mixtures = _mixtures(f, bounded(f, s.layers))
    experts, top_k = f.size("num_local_experts", EXPERTS), f.size("num_experts_per_tok", 1)
    router = RouterConfig(
        top_k=top_k,
        score="sigmoid",
        normalise=False,
        on_input=True,
        balance_loss=balance_loss(f, top_k, s.layers),
    )
    wide = MlpConfig(d_ff=f.size("intermediate_size_mlp", D_FF_DENSE))
    f.skip("for_llm_compressor")
    f.finish()
    expert, mixer = MlpConfig(d_ff=s.d_ff), s.attention(bias=bias, out_bias=bias)
    sparse = MoeConfig(experts=experts, router=router, expert=expert, shared=expert)
    blocks = []
    for i, (turn, kind) in enumerate(zip(turns, found, strict=True)):
        mine = replace(
            mixer,
            position=position if turn else None,
            chunk=chunk if kind == CHUNKED else None,
            qk_norm=replace(s.norm, scale="none") if turn and normed else None,
            growth=growth if grows and not turn else None,
        )
        blocks.append(BlockConfig(mixer=mine, mlp=sparse if i in mixtures else wide, pre=s.norm))
    return s.model(stack(blocks, s.norm))


def _mixtures(f: Fields, layers: int) -> set[int]:
    """Which layers are mixtures: moe_layers, or every interleave_moe_layer_step-th."""
    step = f.size("interleave_moe_layer_step", 1) or 1
    found = f.take("moe_layers", list, [*range(step - 1, layers, step)])
    if strange := [i for i in found if type(i) is not int or not 0 <= i < layers]:
        f.problems.append(f"{f.where}: moe_layers has {repr(strange[0])[:40]}, expected numbers below {layers}")
        return set()
    return set(found)


def config_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    block, mlp = mixture(config, ARCHITECTURE)
    blocks, mixers = config.stack.blocks, attentions(config)
    turns = [isinstance(mixer.position, Rope) for mixer in mixers]
    turned = next((b for b, turn in zip(blocks, turns) if turn), block)
    growth = next((mixer.growth for mixer in mixers if mixer.growth), None)
    widths = [b.mlp.d_ff for b in blocks if isinstance(b.mlp, MlpConfig)]
    own = {
        "hidden_act": "silu",
        "intermediate_size": mlp.expert.d_ff,
        "intermediate_size_mlp": widths[0] if widths else D_FF_DENSE,
        "attention_bias": isinstance(block.mixer, AttentionConfig) and block.mixer.bias,
        "use_qk_norm": any(mixer.qk_norm for mixer in mixers),
        "attention_chunk_size": next((mixer.chunk for mixer in mixers if mixer.chunk), CHUNK),
        "layer_types": types(config),
        "no_rope_layers": [int(turn) for turn in turns],
        "no_rope_layer_interval": PERIOD,
        "moe_layers": [i for i, b in enumerate(blocks) if isinstance(b.mlp, MoeConfig)],
        "interleave_moe_layer_step": 1,
        "attn_temperature_tuning": growth is not None,
        "floor_scale": int(growth.floor) if growth else 8192,
        "attn_scale": growth.scale if growth else 0.1,
        "num_local_experts": mlp.experts,
        "num_experts_per_tok": mlp.router.top_k,
        "router_aux_loss_coef": coefficient(config),
        "output_router_logits": False,
        **llama.turned(turned, length, LENGTH),
    }
    return llama.written(config, block, ARCHITECTURE, "llama4_text", **own)


LLAMA4 = Family(
    architecture=ARCHITECTURE,
    model_type="llama4_text",
    rules=RULES,
    from_hf=config_from_hf,
    to_hf=config_to_hf,
    base="model.",
    ignored=llama.IGNORED,
    aliases=llama.ALIASES,
)
