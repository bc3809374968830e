"""DeepseekV2ForCausalLM and DeepseekV3ForCausalLM: latent attention, and mixtures of experts after a few plain layers.

The modules that predict further tokens are the layers after the last, which `transformers` reads only for speculative
decoding. The copies of embeddings and head that published checkpoints keep beside them are read over.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pretrain.models.config import (
    AheadConfig,
    BlockConfig,
    MlaConfig,
    MlpConfig,
    MoeConfig,
    NormConfig,
    RouterConfig,
    StackConfig,
    TransformerConfig,
    YarnScaling,
)
from pretrain.models.convert import llama, rope
from pretrain.models.convert.engine import Family
from pretrain.models.convert.fields import Fields, Unlike, alone
from pretrain.models.convert.mixtral import expert_rules
from pretrain.models.convert.periods import bounded
from pretrain.models.convert.rules import Rule

V2, V3 = "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"
EPS = 1e-6
"""Of the latents' norms, whatever rms_norm_eps says."""
RATE = 1e-3
"""What moves the balancing bias in training (DeepSeek-V3, section 4.2); config.json does not say."""

_layer, _block = "model.layers.{i}.", "decoder/{layer}/"
_theirs, _ours = _layer + "self_attn.", _block + "mixer/"
_plain = ("q_proj", "k_proj", "v_proj", "o_proj")
LAYER = (
    *(r for r in llama.RULES if r.theirs.startswith(_layer) and r.theirs.split(".")[-2] not in _plain),
    Rule(_theirs + "q_proj.weight", _ours + "query", "(k h) d -> d k h", instead=_ours + "query_down"),
    Rule(_theirs + "q_b_proj.weight", _ours + "query", "(k h) r -> r k h", beside=_ours + "query_down"),
    Rule(_theirs + "q_a_proj.weight", _ours + "query_down", "r d -> d r"),
    Rule(_theirs + "q_a_proj.bias", _ours + "query_down_bias", "r -> r"),
    Rule(_theirs + "q_a_layernorm.weight", _ours + "query_norm/scale", "r -> r"),
    Rule(
        _theirs + "kv_a_proj_with_mqa.weight",
        (_ours + "latent_down", _ours + "rotary_key"),
        ("r d -> d r", "r d -> d r"),
    ),
    Rule(_theirs + "kv_a_proj_with_mqa.bias", (_ours + "latent_bias", _ours + "rotary_bias"), ("r -> r", "r -> r")),
    Rule(_theirs + "kv_a_layernorm.weight", _ours + "latent_norm/scale", "r -> r"),
    Rule(
        _theirs + "kv_b_proj.weight",
        (_ours + "key", _ours + "value"),
        ("(k h) r -> r k h", "(k h) r -> r k h"),
        axis="h",
    ),
    Rule(_theirs + "o_proj.weight", _ours + "out", "d (k h) -> k h d"),
    Rule(_theirs + "o_proj.bias", _ours + "out_bias", "d -> d"),
    *expert_rules(_layer + "mlp"),
    Rule(_layer + "mlp.gate.e_score_correction_bias", _block + "mlp/balance", "e -> e"),
    Rule(_layer + "mlp.shared_experts.gate_proj.weight", _block + "mlp/shared/gate", "f d -> d f"),
    Rule(_layer + "mlp.shared_experts.up_proj.weight", _block + "mlp/shared/up", "f d -> d f"),
    Rule(_layer + "mlp.shared_experts.down_proj.weight", _block + "mlp/shared/down", "d f -> f d"),
)
_module = "ahead_modules/{layer}/"


def _ahead(rule: Rule) -> Rule:
    """The same row in a module that predicts further tokens."""

    def moved(name: str | None) -> str | None:
        return name and name.replace(_block, _module + "block/")

    ours = tuple(name.replace(_block, _module + "block/") for name, _ in rule.parts())
    one = ours[0] if isinstance(rule.ours, str) else ours
    return replace(rule, ours=one, after="decoder", beside=moved(rule.beside), instead=moved(rule.instead))


RULES = (
    *(rule for rule in llama.RULES if not rule.theirs.startswith(_layer)),
    *LAYER,
    *(_ahead(rule) for rule in LAYER),
    Rule(_layer + "enorm.weight", _module + "embed_norm/scale", "d -> d", after="decoder"),
    Rule(_layer + "hnorm.weight", _module + "hidden_norm/scale", "d -> d", after="decoder"),
    Rule(
        _layer + "eh_proj.weight",
        (_module + "join_embed", _module + "join_hidden"),
        ("d c -> c d", "d c -> c d"),
        axis=1,
        after="decoder",
    ),
    Rule(_layer + "shared_head.norm.weight", _module + "final_norm/scale", "d -> d", after="decoder"),
)


def _mixer(f: Fields, heads: int | None, length: int, interleaved: bool) -> MlaConfig:
    values = rope.merged(f)
    position = rope.one(values, f, length, interleaved=interleaved)
    sizes = {
        name: f.size(theirs, default)
        for name, theirs, default in (
            ("kv_rank", "kv_lora_rank", 512),
            ("nope_dim", "qk_nope_head_dim", 128),
            ("rope_dim", "qk_rope_head_dim", 64),
            ("value_dim", "v_head_dim", 128),
        )
    }
    sizes["query_rank"] = f.optional("q_lora_rank", 1536, int)
    bias, scale = f.take("attention_bias", bool, False), None
    everywhere = values.get("mscale_all_dim")
    if isinstance(position.scaling, YarnScaling) and everywhere and not f.problems:
        share = rope.magnitude(position.scaling.factor, float(everywhere))
        scale = (sizes["nope_dim"] + sizes["rope_dim"]) ** -0.5 * share * share
    f.skip("head_dim", "qk_head_dim")
    f.expect("num_key_value_heads", heads)
    return MlaConfig(heads=heads or 1, position=position, norm=NormConfig(eps=EPS), bias=bias, scale=scale, **sizes)


def _router(f: Fields, version: str) -> RouterConfig:
    f.skip("seq_aux", "ep_size", "output_router_logits", "num_experts", "num_local_experts", "router_aux_loss_coef")
    balance = max(f.take("aux_loss_alpha", float, 0.0), 0.0)
    top_k, scale = f.size("num_experts_per_tok"), f.positive("routed_scaling_factor", 1.0 if version == V2 else 2.5)
    if version == V3:
        f.expect("topk_method", "noaux_tc")
        f.expect("scoring_func", "sigmoid")
        return RouterConfig(
            top_k=top_k,
            score="sigmoid",
            normalise=f.take("norm_topk_prob", bool, True),
            scale=scale,
            groups=f.size("n_group", 8),
            top_groups=f.size("topk_group", 4),
            group_score="top2",
            balance_rate=RATE,
            balance_loss=balance,
        )
    f.expect("scoring_func", "softmax")
    f.expect("norm_topk_prob", False)  # which `transformers` does not read
    limited = f.choose("topk_method", {"greedy": False, "group_limited_greedy": True}, "greedy")
    groups, best = f.size("n_group", 1), f.size("topk_group", 1)
    return RouterConfig(
        top_k=top_k,
        normalise=False,
        scale=scale,
        groups=groups if limited else 1,
        top_groups=best if limited else 1,
        balance_loss=balance,
    )


def _from_hf(values: Mapping[str, Any], version: str) -> TransformerConfig:
    f = Fields(values, version)
    length = f.size("max_position_embeddings", 2048 if version == V2 else 4096)
    s = llama.shared(f, length=length, head_dim=1)
    f.choose("hidden_act", llama.SILU, "silu")
    interleaved = f.take("rope_interleave", bool, True) if version == V3 else True
    mixer, router = _mixer(f, s.heads, length, interleaved), _router(f, version)
    shared = f.size("n_shared_experts", 2 if version == V2 else 1)
    width = f.size("moe_intermediate_size", 1407 if version == V2 else 2048)
    experts, ahead = f.size("n_routed_experts", 64 if version == V2 else 256), 0
    first = f.positive("first_k_dense_replace", 0 if version == V2 else 3, int, above=-1)
    first = min(first or 0, bounded(f, s.layers))
    f.expect("moe_layer_freq", 1)
    if version == V3:
        ahead = f.positive("num_nextn_predict_layers", f.take("num_mtp_layers", int, 1), int, above=-1)
        ahead = min(ahead or 0, bounded(f, ahead))
    f.finish()
    expert = MlpConfig(d_ff=width)
    sparse = MoeConfig(experts=experts, router=router, expert=expert, shared=MlpConfig(d_ff=shared * width))
    block = BlockConfig(mixer=mixer, mlp=sparse, pre=s.norm)
    plain = replace(block, mlp=MlpConfig(d_ff=s.d_ff))
    decoder = StackConfig(prefix=(plain,) * first, pattern=(block,), repeats=s.layers - first, final_norm=s.norm)
    return s.model(decoder, ahead=AheadConfig(depth=ahead, block=block, norm=s.norm) if ahead else None)


def _refined(config: TransformerConfig, names) -> TransformerConfig:
    """Without the modules that predict further tokens where a checkpoint, as most copies, leaves them out."""
    last = len(config.stack.blocks)
    return config if any(f"layers.{last}.enorm." in name for name in names) else replace(config, ahead=None)


def _to_hf(config: TransformerConfig, length: int | None, version: str) -> dict[str, Any]:
    blocks = alone(config, "decoder", version).blocks
    block, mixer, mlp = blocks[-1], blocks[-1].mixer, blocks[-1].mlp
    if not isinstance(mixer, MlaConfig) or not isinstance(mlp, MoeConfig):
        raise Unlike(
            f"decoder: found {type(mixer).__name__} and {type(mlp).__name__} in its last layer, {version} has latent "
            "attention and mixtures of experts; export another architecture"
        )
    plain = [b.mlp.d_ff for b in blocks if isinstance(b.mlp, MlpConfig)]
    longest, turned = rope.to_hf(mixer.position, length, 4096)
    _say_scale(mixer, turned)
    router = mlp.router
    own = {
        "hidden_act": "silu",
        "intermediate_size": plain[0] if plain else mlp.expert.d_ff,
        "moe_intermediate_size": mlp.expert.d_ff,
        "n_routed_experts": mlp.experts,
        "n_shared_experts": mlp.shared.d_ff // mlp.expert.d_ff if mlp.shared else 0,
        "num_experts_per_tok": router.top_k,
        "norm_topk_prob": router.normalise,
        "routed_scaling_factor": router.scale,
        "first_k_dense_replace": len(plain),
        "q_lora_rank": mixer.query_rank,
        "kv_lora_rank": mixer.kv_rank,
        "qk_nope_head_dim": mixer.nope_dim,
        "qk_rope_head_dim": mixer.rope_dim,
        "v_head_dim": mixer.value_dim,
        "attention_bias": mixer.bias,
        "n_group": router.groups,
        "topk_group": router.top_groups,
        "max_position_embeddings": longest,
        **turned,
    }
    if version == V2:
        own["topk_method"] = "greedy" if router.groups == 1 else "group_limited_greedy"
    else:
        own |= {"rope_interleave": mixer.position.interleaved, "topk_method": "noaux_tc", "scoring_func": "sigmoid"}
        own["num_nextn_predict_layers"] = config.ahead.depth if config.ahead else 0
    return llama.written(config, block, version, "deepseek_v2" if version == V2 else "deepseek_v3", **own)


def _say_scale(mixer: MlaConfig, turned: dict[str, Any]) -> None:
    """mscale_all_dim, from which a scale other than the usual one is computed; mscale where both halves are alike."""
    scaling = mixer.position.scaling
    if mixer.scale is None or not isinstance(scaling, YarnScaling) or scaling.factor <= 1:
        return
    share = math.sqrt(mixer.scale * math.sqrt(mixer.nope_dim + mixer.rope_dim))
    everywhere = round((share - 1) / (0.1 * math.log(scaling.factor)), 9)
    for fields in (turned["rope_parameters"], turned["rope_scaling"]):
        fields["mscale_all_dim"] = everywhere
        if scaling.attention_factor == 1.0:
            fields["mscale"] = everywhere
            del fields["attention_factor"]


V2_FAMILY = Family(
    architecture=V2,
    model_type="deepseek_v2",
    rules=RULES,
    from_hf=lambda values: _from_hf(values, V2),
    to_hf=lambda config, length: _to_hf(config, length, V2),
    base="model.",
    ignored=llama.IGNORED,
    aliases=llama.ALIASES,
)
V3_FAMILY = replace(
    V2_FAMILY,
    architecture=V3,
    model_type="deepseek_v3",
    from_hf=lambda values: _from_hf(values, V3),
    to_hf=lambda config, length: _to_hf(config, length, V3),
    refine=_refined,
    ignored=(*llama.IGNORED, r"(model\.)?layers\.\d+\.(embed_tokens|shared_head\.head)\.weight"),
)
