"""Tiny random decoders of `transformers`, two or three for each family: one as published, others with what its config
can change."""

from tests.parity.zoo import VOCAB, rope, torch, transformers

BASE = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2}
BASE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": None}
GEMMA = BASE | {"head_dim": 12, "num_hidden_layers": 3}
LONG = {"short_factor": [1.0, 1.2, 1.5, 2.0], "long_factor": [1.5, 2.5, 4.0, 8.0]}
LONG_ROPE = {"rope_parameters": {"rope_type": "longrope", "rope_theta": 500.0, **LONG}}
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=8)
NESTED = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 2000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    }
}
GPTJ = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
OPT = {"vocab_size": VOCAB, "hidden_size": 32, "ffn_dim": 44, "num_hidden_layers": 2, "num_attention_heads": 4}
OPT |= {"max_position_embeddings": 32, "dropout": 0.0}
NEOX = BASE | {"num_key_value_heads": None, "hidden_act": "gelu", "bos_token_id": None, "eos_token_id": None}
TRANSPOSED = ("Llama4Text", "GptOss")
"""Their experts' matrices have inputs before outputs."""

MODELS: dict[str, tuple[str, dict]] = {
    "mistral": ("Mistral", BASE | {"sliding_window": 5}),
    "mistral_wide_heads": (
        "Mistral",
        BASE | {"sliding_window": 5, "head_dim": 12, "num_attention_heads": 3} | {"num_key_value_heads": 1},
    ),
    "qwen2": ("Qwen2", BASE),
    "qwen2_windows": (
        "Qwen2",
        BASE | YARN | {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", BASE | {"head_dim": 12, "tie_word_embeddings": True}),
    "qwen3_biases": ("Qwen3", BASE | {"head_dim": 8, "attention_bias": True}),
    "gemma": ("Gemma", GEMMA),
    "gemma_untied": ("Gemma", GEMMA | {"tie_word_embeddings": False, "attention_bias": True, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2", GEMMA | {"sliding_window": 5, "query_pre_attn_scalar": 7}),
    "gemma2_no_caps": (
        "Gemma2",
        GEMMA
        | {"sliding_window": 5, "attn_logit_softcapping": None}
        | {"final_logit_softcapping": None, "query_pre_attn_scalar": 12},
    ),
    "gemma2_caps_bite": (
        "Gemma2",
        GEMMA | {"sliding_window": 5, "attn_logit_softcapping": 1.0} | {"final_logit_softcapping": 0.5},
    ),
    "gemma3": ("Gemma3Text", GEMMA | {"sliding_window": 5, "num_hidden_layers": 8}),
    "gemma3_ropes": (
        "Gemma3Text",
        GEMMA
        | NESTED
        | {"sliding_window": 5, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
        | {"final_logit_softcapping": 2.0},
    ),
    "olmo2": ("Olmo2", BASE | {"rms_norm_eps": 1e-3}),
    "olmo2_mha": ("Olmo2", BASE | {"num_key_value_heads": 4, "attention_bias": True}),
    "phi3": ("Phi3", BASE | {"original_max_position_embeddings": 64}),
    "phi3_window": ("Phi3", BASE | {"sliding_window": 6, "num_key_value_heads": 4}),
    "phi3_long": ("Phi3", BASE | LONG_ROPE | {"original_max_position_embeddings": 8}),
    "phi3_short": ("Phi3", BASE | LONG_ROPE | {"original_max_position_embeddings": 32}),
    "phi4_mini": (
        "Phi3",
        BASE
        | {"num_attention_heads": 2, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 8}
        | {"rope_parameters": {**LONG_ROPE["rope_parameters"], "partial_rotary_factor": 0.5}}
        | {"tie_word_embeddings": True},
    ),
    "smollm3": ("SmolLM3", BASE | {"num_hidden_layers": 5}),
    "smollm3_windows": (
        "SmolLM3",
        BASE
        | {
            "num_hidden_layers": 4,
            "no_rope_layers": [1, 0, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 5,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "gptj": ("GPTJ", GPTJ | {"rotary_dim": 4}),
    "gptj_whole_heads": ("GPTJ", GPTJ | {"rotary_dim": 8, "n_inner": 40, "activation_function": "gelu"}),
    "neox": ("GPTNeoX", NEOX),
    "neox_in_line": (
        "GPTNeoX",
        NEOX
        | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    ),
    "opt": ("OPT", OPT),
    "opt_post_norm": ("OPT", OPT | {"do_layer_norm_before": False, "tie_word_embeddings": False}),
    "opt_plain": (
        "OPT",
        OPT | {"enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
    ),
}


SEEDS = {"phi3_short": 1}
"""Of weights, where those of 0 are badly conditioned: rounding every activation once more moves a logit by 1e-5."""


def theirs(name: str, seed: int | None = None):
    return built(*MODELS[name], seed=SEEDS.get(name, 0) if seed is None else seed)


def built(family: str, settings: dict, *, seed: int = 0):
    """The model in f32 with random weights everywhere, biases, norms and buffers that are saved too."""
    config = getattr(transformers, f"{family}Config")(**settings)
    torch.manual_seed(seed)
    config._attn_implementation = "eager"  # the only one that knows softcaps and sinks
    model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config).eval()
    saved = model.state_dict()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *model.named_buffers()]:
            if name not in saved:
                continue
            if p.ndim == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
            else:
                inputs = p.shape[-2] if family in TRANSPOSED and p.ndim == 3 else p.shape[-1]
                p.copy_(torch.randn(p.shape, generator=generator) * inputs**-0.5)
    return model
