"""GPT-2 (Radford et al. 2019)."""

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    EmbedConfig,
    HeadConfig,
    InitConfig,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    StackConfig,
    TransformerConfig,
)


def gpt2(
    *,
    d_model: int,
    layers: int,
    heads: int,
    vocab_size: int = 50257,
    length: int = 1024,
    head_dim: int | None = None,
    d_ff: int | None = None,
    dropout: float = 0.0,
    window: int | None = None,
) -> TransformerConfig:
    """LayerNorm before each branch, learned positions, tanh-GELU, tied head. `window`: of every second layer."""
    norm = NormConfig(kind="layer", eps=1e-5, bias=True)

    def block(window: int | None) -> BlockConfig:
        width = head_dim or d_model // heads
        attention = AttentionConfig(
            heads=heads, kv_heads=heads, head_dim=width, bias=True, out_bias=True, window=window
        )
        mlp = MlpConfig(d_ff=d_ff or 4 * d_model, activation="gelu_tanh", gated=False, bias=True)
        return BlockConfig(mixer=attention, mlp=mlp, pre=norm, dropout=dropout)

    pattern = (block(None),) if window is None else (block(None), block(window))
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        embed=EmbedConfig(dropout=dropout),
        decoder=StackConfig(
            pattern=pattern,
            repeats=layers // len(pattern),
            positions=LearnedPositions(length=length),
            final_norm=norm,
        ),
        head=HeadConfig(tied=True),
        init=InitConfig(kind="normal", std=0.02, residual="depth"),
    )


def small() -> TransformerConfig:
    return gpt2(d_model=768, layers=12, heads=12)


def medium() -> TransformerConfig:
    return gpt2(d_model=1024, layers=24, heads=16)


def large() -> TransformerConfig:
    return gpt2(d_model=1280, layers=36, heads=20)


def xl() -> TransformerConfig:
    return gpt2(d_model=1600, layers=48, heads=25)
