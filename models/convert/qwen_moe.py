"""Qwen3MoeForCausalLM (Qwen team 2025): Qwen 3 with mixtures of experts."""

from collections.abc import Mapping
from typing import Any

from pretrain.models.config import AttentionConfig, BlockConfig, MlpConfig, MoeConfig, RouterConfig, TransformerConfig
from pretrain.models.convert import llama, qwen, rope
from pretrain.models.convert.engine import Family
from pretrain.models.convert.fields import Fields
from pretrain.models.convert.mixtral import balance_loss, coefficient, expert_rules, mixture
from pretrain.models.convert.periods import bounded, stack

ARCHITECTURE = "Qwen3MoeForCausalLM"
KV_HEADS, EXPERTS, TOP_K, D_FF, D_FF_DENSE = 4, 128, 8, 768, 6144
"""Of a config.json that does not say, as in `transformers`."""

RULES = (*llama.RULES, *qwen.NORMS, *expert_rules("model.layers.{i}.mlp"))


def config_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, ARCHITECTURE)
    s = llama.shared(f, length=qwen.LENGTH, kv_heads=KV_HEADS, d_ff=D_FF_DENSE)
    f.choose("hidden_act", llama.SILU, "silu")
    bias = f.take("attention_bias", bool, f.take("qkv_bias", bool, False))
    slides, window = f.take("use_sliding_window", bool, False), f.optional("sliding_window", qwen.WINDOW, int)
    experts = f.size("num_experts", f.size("num_local_experts", EXPERTS))  # the name since version 5
    f.expect("num_local_experts", experts)
    top_k = f.size("num_experts_per_tok", TOP_K)
    router = RouterConfig(
        top_k=top_k,
        normalise=f.take("norm_topk_prob", bool, False),
        balance_loss=balance_loss(f, top_k, s.layers),
    )
    d_ff, every = f.size("moe_intermediate_size", D_FF), f.size("decoder_sparse_step", 1)
    plain = f.take("mlp_only_layers", list, [])
    position, layers = rope.from_hf(f, s.length), bounded(f, s.layers)
    f.expect("use_qk_norm", True)
    f.skip("max_window_layers", "shared_expert_intermediate_size")
    f.finish()
    mixer = s.attention(position=position, bias=bias, out_bias=bias, qk_norm=s.norm, window=window if slides else None)
    dense = BlockConfig(mixer=mixer, mlp=MlpConfig(d_ff=s.d_ff), pre=s.norm)
    sparse = BlockConfig(
        mixer=mixer, mlp=MoeConfig(experts=experts, router=router, expert=MlpConfig(d_ff=d_ff)), pre=s.norm
    )
    blocks = [dense if i in plain or (i + 1) % every else sparse for i in range(layers)]
    return s.model(stack(blocks, s.norm))


def config_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    block, mlp = mixture(config, ARCHITECTURE)
    blocks = config.stack.blocks
    plain = [i for i, b in enumerate(blocks) if isinstance(b.mlp, MlpConfig)]
    widths = [b.mlp.d_ff for b in blocks if isinstance(b.mlp, MlpConfig)]
    mixer = block.mixer if isinstance(block.mixer, AttentionConfig) else None
    own = {
        "hidden_act": "silu",
        "intermediate_size": widths[0] if widths else D_FF_DENSE,
        "moe_intermediate_size": mlp.expert.d_ff,
        "num_experts": mlp.experts,
        "num_experts_per_tok": mlp.router.top_k,
        "norm_topk_prob": mlp.router.normalise,
        "router_aux_loss_coef": coefficient(config),
        "output_router_logits": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": plain,
        "attention_bias": bool(mixer and mixer.bias),
        "use_sliding_window": bool(mixer and mixer.window),
        "sliding_window": mixer and mixer.window,
        **llama.turned(block, length, qwen.LENGTH),
    }
    return llama.written(config, block, ARCHITECTURE, "qwen3_moe", **own)


QWEN3_MOE = Family(
    architecture=ARCHITECTURE,
    model_type="qwen3_moe",
    rules=RULES,
    from_hf=config_from_hf,
    to_hf=config_to_hf,
    base="model.",
    ignored=llama.IGNORED,
    aliases=llama.ALIASES,
)
