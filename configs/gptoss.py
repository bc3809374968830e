"""gpt-oss (OpenAI 2025)."""

from dataclasses import replace

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    MlpConfig,
    MoeConfig,
    NormConfig,
    Rope,
    RouterConfig,
    StackConfig,
    TransformerConfig,
    YarnScaling,
)


def gptoss(
    *,
    layers: int,
    experts: int,
    top_k: int = 4,
    d_model: int = 2880,
    heads: int = 64,
    kv_heads: int = 8,
    head_dim: int = 64,
    d_ff: int = 2880,
    window: int = 128,
    vocab_size: int = 201_088,
    balance_loss: float = 0.0,
) -> TransformerConfig:
    """Sinks in every head, a window in every other layer, mixtures of biased experts whose gates are clamped."""
    norm = NormConfig(eps=1e-5)
    scaling = YarnScaling(factor=32.0, original_length=4096, truncate=False)
    far = AttentionConfig(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        position=Rope(theta=150_000.0, scaling=scaling),
        sinks=True,
        bias=True,
        out_bias=True,
    )
    expert = MlpConfig(d_ff=d_ff, activation="gelu_quick", bias=True, clamp=7.0, up_offset=1.0)
    router = RouterConfig(top_k=top_k, bias=True, balance_loss=balance_loss)
    mixture = MoeConfig(experts=experts, router=router, expert=expert)
    pattern = tuple(BlockConfig(mixer=m, mlp=mixture, pre=norm) for m in (replace(far, window=window), far))
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        decoder=StackConfig(pattern=pattern, repeats=layers // 2, suffix=pattern[: layers % 2], final_norm=norm),
        head=HeadConfig(),
    )


def gptoss_20b() -> TransformerConfig:
    return gptoss(layers=24, experts=32)


def gptoss_120b() -> TransformerConfig:
    return gptoss(layers=36, experts=128)
