"""Mistral (Jiang et al. 2023): Llama with a sliding window, which later releases left out again."""

from dataclasses import replace

from pretrain.configs.llama import llama
from pretrain.models.config import TransformerConfig


def mistral(*, window: int | None = None, **sizes) -> TransformerConfig:
    """`sizes`: as `llama` takes them."""
    config = llama(**sizes)
    (block,) = config.stack.pattern
    block = replace(block, mixer=replace(block.mixer, window=window))
    return replace(config, decoder=replace(config.stack, pattern=(block,)))


def mistral_7b() -> TransformerConfig:
    """Release 0.1."""
    return mistral(vocab_size=32000, d_model=4096, layers=32, heads=32, kv_heads=8, d_ff=14336, window=4096)


def mistral_7b_v3() -> TransformerConfig:
    return mistral(vocab_size=32768, d_model=4096, layers=32, heads=32, kv_heads=8, d_ff=14336, theta=1e6)


def nemo_12b() -> TransformerConfig:
    """With NVIDIA, 2024."""
    return mistral(
        vocab_size=131072, d_model=5120, layers=40, heads=32, kv_heads=8, head_dim=128, d_ff=14336, theta=1e6
    )


def small_24b() -> TransformerConfig:
    """Mistral Small 3 (2025)."""
    return mistral(
        vocab_size=131072, d_model=5120, layers=40, heads=32, kv_heads=8, head_dim=128, d_ff=32768, theta=1e8
    )
