"""GPT-J (Wang & Komatsuzaki 2021)."""

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    MlpConfig,
    NormConfig,
    Rope,
    StackConfig,
    TransformerConfig,
)


def gptj(*, vocab_size: int, d_model: int, layers: int, heads: int, turned: int) -> TransformerConfig:
    """Attention and MLP read one norm's output side by side; `turned` dimensions of each head turn, in pairs of
    neighbours."""
    norm, head_dim = NormConfig(kind="layer", eps=1e-5, bias=True), d_model // heads
    position = Rope(fraction=turned / head_dim, interleaved=True)
    block = BlockConfig(
        mixer=AttentionConfig(heads=heads, kv_heads=heads, head_dim=head_dim, position=position),
        mlp=MlpConfig(d_ff=4 * d_model, activation="gelu_tanh", gated=False, bias=True),
        pre=norm,
        parallel="one_norm",
    )
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        decoder=StackConfig(pattern=(block,), repeats=layers, final_norm=norm),
        head=HeadConfig(bias=True),
    )


def gptj_6b() -> TransformerConfig:
    return gptj(vocab_size=50400, d_model=4096, layers=28, heads=16, turned=64)
