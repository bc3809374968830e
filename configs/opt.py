"""OPT (Zhang et al. 2022), all sizes but 350M, which is built otherwise."""

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    EmbedConfig,
    HeadConfig,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    StackConfig,
    TransformerConfig,
)


def opt(*, d_model: int, layers: int, heads: int, vocab_size: int = 50272, length: int = 2048, dropout: float = 0.0):
    """GPT-3 without bands, with ReLU, and two rows before its table's first position."""
    norm = NormConfig(kind="layer", eps=1e-5, bias=True)
    mixer = AttentionConfig(heads=heads, kv_heads=heads, head_dim=d_model // heads, bias=True, out_bias=True)
    mlp = MlpConfig(d_ff=4 * d_model, activation="relu", gated=False, bias=True)
    block = BlockConfig(mixer=mixer, mlp=mlp, pre=norm, dropout=dropout)
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        embed=EmbedConfig(),
        decoder=StackConfig(
            pattern=(block,),
            repeats=layers,
            positions=LearnedPositions(length=length, offset=2),
            final_norm=norm,
        ),
        head=HeadConfig(tied=True),
    )


def opt_125m() -> TransformerConfig:
    return opt(d_model=768, layers=12, heads=12)


def opt_1_3b() -> TransformerConfig:
    return opt(d_model=2048, layers=24, heads=32)


def opt_2_7b() -> TransformerConfig:
    return opt(d_model=2560, layers=32, heads=32)


def opt_6_7b() -> TransformerConfig:
    return opt(d_model=4096, layers=32, heads=32)


def opt_13b() -> TransformerConfig:
    return opt(d_model=5120, layers=40, heads=40)


def opt_30b() -> TransformerConfig:
    return opt(d_model=7168, layers=48, heads=56)


def opt_66b() -> TransformerConfig:
    return opt(d_model=9216, layers=64, heads=72)


def opt_175b() -> TransformerConfig:
    return opt(d_model=12288, layers=96, heads=96)
