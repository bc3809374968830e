"""OLMo 2 (OLMo team 2024)."""

from dataclasses import replace

from pretrain.configs.llama import llama
from pretrain.models.config import TransformerConfig


def olmo2(*, vocab_size: int = 100_352, eps: float = 1e-6, theta: float = 5e5, **sizes) -> TransformerConfig:
    """Llama with its norms after the branches, and norms of all queries and of all keys together."""
    config = llama(vocab_size=vocab_size, eps=eps, theta=theta, **sizes)
    (block,), norm = config.stack.pattern, config.stack.final_norm
    mixer = replace(block.mixer, qk_norm=norm, qk_norm_over="all")
    block = replace(block, mixer=mixer, pre=None, branch=norm)
    return replace(config, decoder=replace(config.stack, pattern=(block,)))


def olmo2_1b() -> TransformerConfig:
    return olmo2(d_model=2048, layers=16, heads=16, d_ff=8192)


def olmo2_7b() -> TransformerConfig:
    return olmo2(d_model=4096, layers=32, heads=32, d_ff=11008)


def olmo2_13b() -> TransformerConfig:
    return olmo2(d_model=5120, layers=40, heads=40, d_ff=13824)


def olmo2_32b() -> TransformerConfig:
    return olmo2(d_model=5120, layers=64, heads=40, kv_heads=8, d_ff=27648)
