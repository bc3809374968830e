"""MixtralForCausalLM (Jiang et al. 2024): Mistral's layers with mixtures of experts."""

from collections.abc import Mapping
from typing import Any

from pretrain.models.config import AttentionConfig, BlockConfig, MlpConfig, MoeConfig, RouterConfig, TransformerConfig
from pretrain.models.convert import llama, rope
from pretrain.models.convert.engine import Family
from pretrain.models.convert.fields import Fields, Unlike, alone
from pretrain.models.convert.rules import Rule

ARCHITECTURE = "MixtralForCausalLM"
LENGTH, KV_HEADS, THETA, EXPERTS, TOP_K = 131072, 8, 1e6, 8, 2
"""Of a config.json that does not say, as in `transformers`."""


def expert_rules(
    theirs: str, router: str = "gate", names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
):
    """Rows of a router and of experts one by one; `theirs`: the mixture, `names`: of gate, up and down."""
    gate, up, down = (f"{theirs}.experts.{{e}}.{name}.weight" for name in names)
    return (
        Rule(f"{theirs}.{router}.weight", "decoder/{layer}/mlp/router", "e d -> d e"),
        Rule(gate, "decoder/{layer}/mlp/gate", "f d -> d f"),
        Rule(up, "decoder/{layer}/mlp/up", "f d -> d f"),
        Rule(down, "decoder/{layer}/mlp/down", "d f -> f d"),
    )


RULES = (*llama.RULES, *expert_rules("model.layers.{i}.block_sparse_moe", names=("w1", "w3", "w2")))


def balance_loss(f: Fields, top_k: int | None, layers: int | None, default: float = 0.001) -> float:
    """As strong as the auxiliary loss of `transformers`: that counts each of a token's choices, and takes one mean over
    the layers where ours adds them up."""
    f.skip("output_router_logits", "router_jitter_noise")
    coefficient = f.take("router_aux_loss_coef", float, default)
    return max(coefficient, 0.0) * (top_k or 1) / (layers or 1)


def coefficient(config: TransformerConfig) -> float:
    """router_aux_loss_coef, whose inverse is `balance_loss`."""
    routers = [block.mlp.router for block in config.stack.blocks if isinstance(block.mlp, MoeConfig)]
    return routers[0].balance_loss * len(config.stack.blocks) / routers[0].top_k if routers else 0.0


def mixture(config: TransformerConfig, architecture: str) -> tuple[BlockConfig, MoeConfig]:
    """The first layer of a decoder that is a mixture of experts; raises Unlike where none is."""
    for block in alone(config, "decoder", architecture).blocks:
        if isinstance(block.mlp, MoeConfig):
            return block, block.mlp
    raise Unlike(f"found no mixture of experts in the model, {architecture} is one; export another architecture")


def config_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, ARCHITECTURE)
    s = llama.shared(f, length=LENGTH, eps=1e-5, kv_heads=KV_HEADS)
    f.choose("hidden_act", llama.SILU, "silu")
    window = f.optional("sliding_window", None, int)
    experts, top_k = f.size("num_local_experts", EXPERTS), f.size("num_experts_per_tok", TOP_K)
    balance = balance_loss(f, top_k, s.layers)
    position = rope.from_hf(f, s.length, theta=THETA)
    f.finish()
    router = RouterConfig(top_k=top_k, balance_loss=balance)
    mlp = MoeConfig(experts=experts, router=router, expert=MlpConfig(d_ff=s.d_ff))
    return s.uniform(BlockConfig(mixer=s.attention(position=position, window=window), mlp=mlp, pre=s.norm))


def config_to_hf(config: TransformerConfig, length: int | None = None) -> dict:
    block, mlp = mixture(config, ARCHITECTURE)
    own = {
        "hidden_act": "silu",
        "intermediate_size": mlp.expert.d_ff,
        "sliding_window": block.mixer.window if isinstance(block.mixer, AttentionConfig) else None,
        "num_local_experts": mlp.experts,
        "num_experts_per_tok": mlp.router.top_k,
        "router_aux_loss_coef": coefficient(config),
        "router_jitter_noise": 0.0,
        "output_router_logits": False,
        **llama.turned(block, length, LENGTH),
    }
    return llama.written(config, block, ARCHITECTURE, "mixtral", **own)


MIXTRAL = Family(
    architecture=ARCHITECTURE,
    model_type="mixtral",
    rules=RULES,
    from_hf=config_from_hf,
    to_hf=config_to_hf,
    base="model.",
    ignored=llama.IGNORED,
    aliases=llama.ALIASES,
)
