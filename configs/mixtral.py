"""Mixtral (Jiang et al. 2024): Mistral whose MLPs are mixtures of eight experts."""

from dataclasses import replace

from pretrain.configs.llama import llama
from pretrain.models.config import MlpConfig, MoeConfig, RouterConfig, TransformerConfig


def mixtral(
    *, d_ff: int, experts: int = 8, top_k: int = 2, balance_loss: float = 0.0, z_loss: float = 0.0, **sizes
) -> TransformerConfig:
    """`d_ff`: of each expert. `sizes`: as `llama` takes them."""
    config = llama(d_ff=d_ff, **sizes)
    (block,) = config.stack.pattern
    router = RouterConfig(top_k=top_k, balance_loss=balance_loss, z_loss=z_loss)
    mixture = MoeConfig(experts=experts, router=router, expert=MlpConfig(d_ff=d_ff))
    return replace(config, decoder=replace(config.stack, pattern=(replace(block, mlp=mixture),)))


def mixtral_8x7b() -> TransformerConfig:
    return mixtral(vocab_size=32000, d_model=4096, layers=32, heads=32, kv_heads=8, d_ff=14336, theta=1e6)


def mixtral_8x22b() -> TransformerConfig:
    """Release 0.1; its vocabulary grew from 32000 with the instruction model."""
    return mixtral(vocab_size=32768, d_model=6144, layers=56, heads=48, kv_heads=8, d_ff=16384, theta=1e6)
