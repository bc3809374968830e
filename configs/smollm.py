"""SmolLM2 (Allal et al. 2025), which is Llama, and SmolLM3 (Bakouch et al. 2025)."""

from dataclasses import replace

from pretrain.configs.llama import llama
from pretrain.models.config import TransformerConfig


def smollm3(*, vocab_size: int = 128_256, theta: float = 5e6, eps: float = 1e-6, **sizes) -> TransformerConfig:
    """Llama whose every fourth layer has no positions (Yang et al. 2025)."""
    config = llama(vocab_size=vocab_size, theta=theta, eps=eps, tied=True, **sizes)
    (block,), layers = config.stack.pattern, config.stack.repeats
    pattern = (block, block, block, replace(block, mixer=replace(block.mixer, position=None)))
    repeats, rest = divmod(layers, 4)
    return replace(config, decoder=replace(config.stack, pattern=pattern, repeats=repeats, suffix=pattern[:rest]))


def smollm2_135m() -> TransformerConfig:
    return llama(vocab_size=49152, d_model=576, layers=30, heads=9, kv_heads=3, d_ff=1536, theta=1e5, tied=True)


def smollm2_360m() -> TransformerConfig:
    return llama(vocab_size=49152, d_model=960, layers=32, heads=15, kv_heads=5, d_ff=2560, theta=1e5, tied=True)


def smollm2_1_7b() -> TransformerConfig:
    return llama(vocab_size=49152, d_model=2048, layers=24, heads=32, d_ff=8192, theta=1.3e5, tied=True)


def smollm3_3b() -> TransformerConfig:
    return smollm3(d_model=2048, layers=36, heads=16, kv_heads=4, d_ff=11008)
