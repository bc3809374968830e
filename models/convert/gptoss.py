"""GptOssForCausalLM (OpenAI 2025), in floats: the published checkpoints hold experts in MXFP4, which is refused."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    MlpConfig,
    MoeConfig,
    RouterConfig,
    TransformerConfig,
)
from pretrain.models.convert import llama, rope
from pretrain.models.convert.engine import Family
from pretrain.models.convert.fields import Fields
from pretrain.models.convert.mixtral import balance_loss, coefficient, mixture
from pretrain.models.convert.periods import FULL, SLIDING, attentions, kinds, stack, types
from pretrain.models.convert.rules import Rule

ARCHITECTURE = "GptOssForCausalLM"
LENGTH, THETA, WINDOW, KV_HEADS, HEAD_DIM, EXPERTS, TOP_K = 131072, 150_000.0, 128, 8, 64, 128, 4
ALPHA, LIMIT = 1.702, 7.0
"""Of a config.json that does not say, as in `transformers`; ALPHA makes its gate the quick form of GELU."""
SCALING = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
SCALING |= {rope.ORIGINAL: 4096}

_theirs, _ours = "model.layers.{i}.", "decoder/{layer}/mlp/"
RULES = (
    *llama.RULES,
    Rule(_theirs + "self_attn.sinks", "decoder/{layer}/mixer/sinks", "(k g) -> k g"),
    Rule(_theirs + "mlp.router.weight", _ours + "router", "e d -> d e"),
    Rule(_theirs + "mlp.router.bias", _ours + "router_bias", "e -> e"),
    Rule(
        _theirs + "mlp.experts.gate_up_proj",
        (_ours + "gate", _ours + "up"),
        ("e d (f 1) -> e d f", "e d (f 1) -> e d f"),
        axis="1",
    ),
    Rule(
        _theirs + "mlp.experts.gate_up_proj_bias",
        (_ours + "gate_bias", _ours + "up_bias"),
        ("e (f 1) -> e f", "e (f 1) -> e f"),
        axis="1",
    ),
    Rule(_theirs + "mlp.experts.down_proj", _ours + "down", "e f d -> e f d"),
    Rule(_theirs + "mlp.experts.down_proj_bias", _ours + "down_bias", "e d -> e d"),
)


def config_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, ARCHITECTURE)
    s = llama.shared(f, length=LENGTH, eps=1e-5, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
    f.choose("hidden_act", llama.SILU, "silu")  # which is not what its experts compute
    f.expect("swiglu_alpha", ALPHA)
    limit, bias = f.positive("swiglu_limit", LIMIT), f.take("attention_bias", bool, True)
    window = f.optional("sliding_window", WINDOW, int)
    experts, top_k = f.size("num_local_experts", EXPERTS), f.size("num_experts_per_tok", TOP_K)
    f.expect("experts_per_token", top_k)
    balance = balance_loss(f, top_k, s.layers)
    position = rope.from_hf(f, s.length, theta=THETA, scaling=SCALING)
    found = kinds(f, s.layers, lambda i: SLIDING if (i + 1) % 2 else FULL)
    f.skip("initial_context_length")
    f.finish()
    mixer = s.attention(position=position, sinks=True, bias=bias, out_bias=bias)
    expert = MlpConfig(d_ff=s.d_ff, activation="gelu_quick", bias=True, clamp=limit, up_offset=1.0)
    router = RouterConfig(top_k=top_k, bias=True, balance_loss=balance)
    mlp = MoeConfig(experts=experts, router=router, expert=expert)
    blocks = [
        BlockConfig(mixer=replace(mixer, window=window if kind == SLIDING else None), mlp=mlp, pre=s.norm)
        for kind in found
    ]
    return s.model(stack(blocks, s.norm))


def config_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    block, mlp = mixture(config, ARCHITECTURE)
    windows = [mixer.window for mixer in attentions(config) if mixer.window]
    own = {
        "hidden_act": "silu",
        "intermediate_size": mlp.expert.d_ff,
        "swiglu_limit": mlp.expert.clamp or LIMIT,
        "attention_bias": isinstance(block.mixer, AttentionConfig) and block.mixer.bias,
        "sliding_window": windows[0] if windows else WINDOW,
        "layer_types": types(config),
        "num_local_experts": mlp.experts,
        "num_experts_per_tok": mlp.router.top_k,
        "router_aux_loss_coef": coefficient(config),
        "output_router_logits": False,
        **llama.turned(block, length, LENGTH),
    }
    return llama.written(config, block, ARCHITECTURE, "gpt_oss", **own)


GPT_OSS = Family(
    architecture=ARCHITECTURE,
    model_type="gpt_oss",
    rules=RULES,
    from_hf=config_from_hf,
    to_hf=config_to_hf,
    base="model.",
    ignored=llama.IGNORED,
    aliases=llama.ALIASES,
)
