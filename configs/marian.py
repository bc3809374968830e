"""Marian (Junczys-Dowmunt et al. 2018), whose translators OPUS-MT published (Tiedemann & Thottingal 2020): the original
Transformer with biases."""

from dataclasses import replace

from pretrain.configs.original_transformer import original_transformer
from pretrain.models.config import Activation, InitConfig, TransformerConfig


def marian(
    *,
    vocab_size: int,
    d_model: int = 512,
    layers: int = 6,
    heads: int = 8,
    d_ff: int = 2048,
    decoder_layers: int | None = None,
    activation: Activation = "silu",
    dropout: float = 0.1,
) -> TransformerConfig:
    shape = {"vocab_size": vocab_size, "d_model": d_model, "layers": layers, "heads": heads, "d_ff": d_ff}
    own = {"decoder_layers": decoder_layers, "activation": activation, "dropout": dropout}
    model = original_transformer(**shape, **own, bias=True, logits_bias=True)
    return replace(model, init=InitConfig(kind="normal", std=0.02))


def opus_mt() -> TransformerConfig:
    """English to German; every pair of languages has its own vocabulary. One parameter a word more than `transformers`
    counts, for which the bias of the logits is a buffer."""
    return marian(vocab_size=58101)


def opus_mt_big() -> TransformerConfig:
    """The size of the "tc-big" models."""
    return marian(vocab_size=58101, d_model=1024, heads=16, d_ff=4096, activation="relu")
