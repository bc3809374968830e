"""Phi-3 and Phi-4 (Abdin et al. 2024a, 2024b; Microsoft 2025): Llama, trained on synthetic text."""

from dataclasses import replace

from pretrain.configs.llama import llama
from pretrain.models.config import LongRopeScaling, Rope, TransformerConfig

LONG_MINI = (
    *(1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649, 2.446418898),
    *(2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533, 5.984965424),
    *(6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252),
    *(16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6),
    *(32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77),
)
"""long_factor of Phi-4-mini's published config.json."""


def phi3(*, window: int | None = None, fraction: float = 1.0, **sizes) -> TransformerConfig:
    """`fraction`: share of each head that turns."""
    config = llama(**sizes)
    (block,) = config.stack.pattern
    assert isinstance(block.mixer.position, Rope)
    mixer = replace(block.mixer, window=window, position=replace(block.mixer.position, fraction=fraction))
    return replace(config, decoder=replace(config.stack, pattern=(replace(block, mixer=mixer),)))


def phi3_mini() -> TransformerConfig:
    """Of 4096 tokens."""
    return phi3(vocab_size=32064, d_model=3072, layers=32, heads=32, d_ff=8192, window=2047)


def phi3_medium() -> TransformerConfig:
    """Of 4096 tokens."""
    return phi3(vocab_size=32064, d_model=5120, layers=40, heads=40, kv_heads=10, d_ff=17920, window=2047)


def phi4() -> TransformerConfig:
    return phi3(vocab_size=100_352, d_model=5120, layers=40, heads=40, kv_heads=10, d_ff=17920, theta=250_000.0)


def phi4_mini() -> TransformerConfig:
    """Three quarters of each head turn; 4096 tokens become 131072 by LongRoPE."""
    sizes = {"d_model": 3072, "layers": 32, "heads": 24, "kv_heads": 8, "d_ff": 8192, "tied": True}
    scaling = LongRopeScaling(
        short_factors=(1.0,) * 48,
        long_factors=LONG_MINI,
        original_length=4096,
        attention_factor=1.1902380714238083,  # sqrt(1 + ln(32) / ln(4096))
    )
    return phi3(vocab_size=200_064, fraction=0.75, scaling=scaling, **sizes)
