"""GPT-3, the eight sizes of Brown et al. 2020, table 2.1: GPT-2 with 2048 positions and alternating dense and locally
banded layers. The paper gives no band width; Child et al. 2019 use 256 for text, and so do we."""

from pretrain.configs.gpt2 import gpt2
from pretrain.models.config import TransformerConfig

BAND = 256


def gpt3(*, d_model: int, layers: int, heads: int, head_dim: int) -> TransformerConfig:
    return gpt2(d_model=d_model, layers=layers, heads=heads, head_dim=head_dim, length=2048, window=BAND)


def gpt3_small() -> TransformerConfig:
    return gpt3(d_model=768, layers=12, heads=12, head_dim=64)


def gpt3_medium() -> TransformerConfig:
    return gpt3(d_model=1024, layers=24, heads=16, head_dim=64)


def gpt3_large() -> TransformerConfig:
    return gpt3(d_model=1536, layers=24, heads=16, head_dim=96)


def gpt3_xl() -> TransformerConfig:
    """24 heads of 128 on a width of 2048, as printed."""
    return gpt3(d_model=2048, layers=24, heads=24, head_dim=128)


def gpt3_2_7b() -> TransformerConfig:
    return gpt3(d_model=2560, layers=32, heads=32, head_dim=80)


def gpt3_6_7b() -> TransformerConfig:
    return gpt3(d_model=4096, layers=32, heads=32, head_dim=128)


def gpt3_13b() -> TransformerConfig:
    """The table prints a width of 5140, which 40 heads of 128 do not make: 5120."""
    return gpt3(d_model=5120, layers=40, heads=40, head_dim=128)


def gpt3_175b() -> TransformerConfig:
    return gpt3(d_model=12288, layers=96, heads=96, head_dim=128)
