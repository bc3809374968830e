"""Every family that has a config file, small."""

from pretrain.configs import (
    bart,
    bert,
    deepseek,
    electra,
    gemma,
    gpt2,
    gptj,
    gptoss,
    llama,
    llama4,
    minilm,
    mixtral,
    modernbert,
    neox,
    olmo,
    opt,
    original_transformer,
    pegasus,
    phi,
    qwen,
    roberta,
    smollm,
    t5,
)
from pretrain.models.config import QueryGrowth, RouterConfig, TransformerConfig

SIZES = {"vocab_size": 64, "d_model": 32, "layers": 2, "heads": 4}
LLAMA = {**SIZES, "kv_heads": 2, "d_ff": 48}
GEMMA = {**LLAMA, "head_dim": 8}
LATENT = {"query_rank": 8, "kv_rank": 16, "nope_dim": 8, "rope_dim": 4, "value_dim": 8}
V3 = RouterConfig(top_k=2, score="sigmoid", groups=4, top_groups=2, group_score="top2", scale=2.5, balance_rate=1e-3)
DEEPSEEK = {**SIZES, **LATENT, "dense_layers": 1, "d_ff": 16, "d_ff_dense": 48, "experts": 8, "shared": 1}
LLAMA4 = {**LLAMA, "layers": 4, "head_dim": 8, "d_ff": 16, "d_ff_dense": 48, "experts": 4, "every": 2}

TINY: dict[str, TransformerConfig] = {
    "gpt2": gpt2.gpt2(**SIZES, length=16),
    "gpt3": gpt2.gpt2(**{**SIZES, "layers": 4}, length=16, window=3),
    "gptj": gptj.gptj(**SIZES, turned=4),
    "neox": neox.neox(**SIZES, fraction=0.5),
    "opt": opt.opt(**SIZES, length=16),
    "llama": llama.llama(**LLAMA),
    "llama4": llama4.llama4(**LLAMA4, qk_norm=True, chunk=6, growth=QueryGrowth(floor=4.0)),
    "mixtral": mixtral.mixtral(**{**LLAMA, "d_ff": 16}, experts=4, balance_loss=0.01, z_loss=1e-3),
    "qwen2": qwen.qwen2(**LLAMA),
    "qwen3": qwen.qwen3(**LLAMA, head_dim=8),
    "qwen3_moe": qwen.qwen3_moe(**{**LLAMA, "d_ff": 16}, head_dim=8, experts=8, top_k=2),
    "gemma": gemma.gemma(**GEMMA),
    "gemma2": gemma.gemma2(**GEMMA, window=5),
    "gemma3": gemma.gemma3(**{**GEMMA, "layers": 6}, window=5),
    "olmo2": olmo.olmo2(**LLAMA),
    "phi3": phi.phi3(**LLAMA, window=7, fraction=0.5),
    "smollm3": smollm.smollm3(**{**LLAMA, "layers": 4}),
    "deepseek": deepseek.deepseek(**DEEPSEEK, router=V3, factor=4.0, ahead=1),
    "gptoss": gptoss.gptoss(**{**GEMMA, "d_ff": 16}, experts=4, top_k=2, window=5),
    "bert": bert.bert(**SIZES, length=16, dropout=0.0),
    "roberta": roberta.roberta(**SIZES, length=16, dropout=0.0),
    "electra": electra.electra(**SIZES, generator_d_model=16, width=24, dropout=0.0),
    "modernbert": modernbert.modernbert(**{**SIZES, "layers": 4}, d_ff=48, window=5),
    "minilm": minilm.sentence_encoder(bert.bert(**SIZES, length=16, dropout=0.0)),
    "t5": t5.t5(**SIZES, d_ff=48, head_dim=8),
    "umt5": t5.t5(**SIZES, d_ff=48, head_dim=8, shared_bias=False, gated=True, tied=False),
    "bart": bart.bart(**SIZES, length=16, dropout=0.0),
    "mbart": bart.bart(**SIZES, length=16, dropout=0.0, pre_norm=True, scaled=True),
    "pegasus": pegasus.pegasus(**SIZES, d_ff=48, dropout=0.0),
    "original_transformer": original_transformer.original_transformer(**SIZES, d_ff=48, dropout=0.0),
}
