"""PEGASUS (Zhang et al. 2020): the original Transformer with biases and LayerNorm before each branch."""

from dataclasses import replace

from pretrain.configs.original_transformer import original_transformer
from pretrain.models.config import InitConfig, TransformerConfig


def pegasus(
    *, d_model: int, layers: int, heads: int, d_ff: int, vocab_size: int = 96103, dropout: float = 0.1
) -> TransformerConfig:
    """`transformers` also stores the sines, which are no parameters here."""
    shape = {"vocab_size": vocab_size, "d_model": d_model, "layers": layers, "heads": heads, "d_ff": d_ff}
    model = original_transformer(**shape, bias=True, pre_norm=True, dropout=dropout)
    return replace(model, init=InitConfig(kind="normal", std=0.02))


def base() -> TransformerConfig:
    return pegasus(d_model=768, layers=12, heads=12, d_ff=3072)


def large() -> TransformerConfig:
    return pegasus(d_model=1024, layers=16, heads=16, d_ff=4096)
