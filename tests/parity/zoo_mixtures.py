"""Tiny random mixtures of experts and latent attention of `transformers`: as published, and with what their config can
change."""

from tests.parity.zoo import rope
from tests.parity.zoo_decoders import BASE, built

MOE = BASE | {"num_experts_per_tok": 2}
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=8, mscale=0.8, mscale_all_dim=0.8)
LATENT = BASE | {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 12,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
}
LATENT3 = LATENT | {"n_shared_experts": 1, "q_lora_rank": 20, "n_group": 4, "topk_group": 2, "num_mtp_layers": 0}
LLAMA4 = MOE | {
    "num_hidden_layers": 4,
    "head_dim": 8,
    "intermediate_size_mlp": 40,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "attention_chunk_size": 6,
    "floor_scale": 5,
    "attn_scale": 0.3,
}

MODELS: dict[str, tuple[str, dict]] = {
    "mixtral": ("Mixtral", MOE | {"num_local_experts": 4}),
    "mixtral_window": ("Mixtral", MOE | {"num_local_experts": 3, "sliding_window": 5, "tie_word_embeddings": True}),
    "qwen3_moe": (
        "Qwen3Moe",
        MOE | {"num_experts": 5, "moe_intermediate_size": 12, "head_dim": 12, "norm_topk_prob": True},
    ),
    "qwen3_moe_mixed": (
        "Qwen3Moe",
        MOE
        | {"num_experts": 5, "moe_intermediate_size": 12, "num_hidden_layers": 5, "decoder_sparse_step": 2}
        | {"mlp_only_layers": [3], "attention_bias": True, "use_sliding_window": True, "sliding_window": 6},
    ),
    "deepseek_v2_lite": ("DeepseekV2", LATENT),
    "deepseek_v2": (
        "DeepseekV2",
        LATENT
        | YARN
        | {"q_lora_rank": 20, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
        | {"routed_scaling_factor": 3.0, "attention_bias": True},
    ),
    "deepseek_v3": ("DeepseekV3", LATENT3 | YARN),
    "deepseek_v3_one_group": (
        "DeepseekV3",
        LATENT3
        | {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "rope_interleave": False, "attention_bias": True}
        | {"first_k_dense_replace": 0, "num_hidden_layers": 2},
    ),
    "gpt_oss": ("GptOss", MOE | {"num_local_experts": 4, "head_dim": 12, "sliding_window": 5, "num_hidden_layers": 4}),
    "gpt_oss_yarn": (
        "GptOss",
        MOE
        | rope("yarn", factor=4.0, original_max_position_embeddings=8, truncate=False)
        | {"num_local_experts": 4, "head_dim": 8, "sliding_window": 5, "num_hidden_layers": 3, "swiglu_limit": 0.5}
        | {"attention_bias": False},
    ),
    "llama4": ("Llama4Text", LLAMA4),
    "llama4_dense_between": (
        "Llama4Text",
        LLAMA4
        | {"num_hidden_layers": 6, "interleave_moe_layer_step": 2, "use_qk_norm": False, "num_experts_per_tok": 2}
        | {"attn_temperature_tuning": False},
    ),
}


def theirs(name: str, seed: int = 0):
    return built(*MODELS[name], seed=seed)
