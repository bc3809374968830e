"""GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023)."""

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    InitConfig,
    MlpConfig,
    NormConfig,
    Rope,
    StackConfig,
    TransformerConfig,
)


def neox(
    *, d_model: int, layers: int, heads: int, vocab_size: int = 50304, fraction: float = 0.25
) -> TransformerConfig:
    """Attention and MLP side by side, each with a norm of its own; a quarter of each head turns."""
    norm = NormConfig(kind="layer", eps=1e-5, bias=True)
    position, head_dim = Rope(fraction=fraction), d_model // heads
    mixer = AttentionConfig(heads=heads, kv_heads=heads, head_dim=head_dim, position=position, bias=True, out_bias=True)
    mlp = MlpConfig(d_ff=4 * d_model, activation="gelu", gated=False, bias=True)
    block = BlockConfig(mixer=mixer, mlp=mlp, pre=norm, parallel="two_norms")
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        decoder=StackConfig(pattern=(block,), repeats=layers, final_norm=norm),
        head=HeadConfig(),
        init=InitConfig(kind="small", residual="wang"),
    )


def neox_20b() -> TransformerConfig:
    return neox(vocab_size=50432, d_model=6144, layers=44, heads=64)


def pythia_70m() -> TransformerConfig:
    return neox(d_model=512, layers=6, heads=8)


def pythia_160m() -> TransformerConfig:
    return neox(d_model=768, layers=12, heads=12)


def pythia_410m() -> TransformerConfig:
    return neox(d_model=1024, layers=24, heads=16)


def pythia_1b() -> TransformerConfig:
    return neox(d_model=2048, layers=16, heads=8)


def pythia_1_4b() -> TransformerConfig:
    return neox(d_model=2048, layers=24, heads=16)


def pythia_2_8b() -> TransformerConfig:
    return neox(d_model=2560, layers=32, heads=32)


def pythia_6_9b() -> TransformerConfig:
    return neox(vocab_size=50432, d_model=4096, layers=32, heads=32)


def pythia_12b() -> TransformerConfig:
    return neox(vocab_size=50688, d_model=5120, layers=36, heads=40)
