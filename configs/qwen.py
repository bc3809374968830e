"""Qwen 2 and 2.5 (Qwen team 2024a, 2024b) and Qwen 3 (2025), dense and mixtures of experts."""

from dataclasses import replace

from pretrain.configs.llama import llama
from pretrain.models.config import MlpConfig, MoeConfig, RouterConfig, TransformerConfig

VOCAB_SIZE = 151936


def qwen2(*, vocab_size: int = VOCAB_SIZE, theta: float = 1e6, eps: float = 1e-6, **sizes) -> TransformerConfig:
    """Llama with biases of queries, keys and values."""
    return _mixers(llama(vocab_size=vocab_size, theta=theta, eps=eps, **sizes), bias=True)


def qwen3(
    *, vocab_size: int = VOCAB_SIZE, theta: float = 1e6, eps: float = 1e-6, head_dim: int = 128, **sizes
) -> TransformerConfig:
    """Llama with a norm of each query and key."""
    config = llama(vocab_size=vocab_size, theta=theta, eps=eps, head_dim=head_dim, **sizes)
    return _mixers(config, qk_norm=config.stack.final_norm)


def qwen3_moe(*, d_ff: int, experts: int = 128, top_k: int = 8, balance_loss: float = 0.0, **sizes):
    """`d_ff`: of each expert."""
    config = qwen3(d_ff=d_ff, **sizes)
    (block,) = config.stack.pattern
    router = RouterConfig(top_k=top_k, balance_loss=balance_loss)
    mixture = MoeConfig(experts=experts, router=router, expert=MlpConfig(d_ff=d_ff))
    return replace(config, decoder=replace(config.stack, pattern=(replace(block, mlp=mixture),)))


def _mixers(config: TransformerConfig, **mixer) -> TransformerConfig:
    (block,) = config.stack.pattern
    block = replace(block, mixer=replace(block.mixer, **mixer))
    return replace(config, decoder=replace(config.stack, pattern=(block,)))


def qwen2_0_5b() -> TransformerConfig:
    return qwen2(d_model=896, layers=24, heads=14, kv_heads=2, d_ff=4864, tied=True)


def qwen2_1_5b() -> TransformerConfig:
    return qwen2(d_model=1536, layers=28, heads=12, kv_heads=2, d_ff=8960, tied=True)


def qwen2_7b() -> TransformerConfig:
    return qwen2(vocab_size=152064, d_model=3584, layers=28, heads=28, kv_heads=4, d_ff=18944)


def qwen2_72b() -> TransformerConfig:
    return qwen2(vocab_size=152064, d_model=8192, layers=80, heads=64, kv_heads=8, d_ff=29568, eps=1e-5)


def qwen25_3b() -> TransformerConfig:
    return qwen2(d_model=2048, layers=36, heads=16, kv_heads=2, d_ff=11008, tied=True)


def qwen25_14b() -> TransformerConfig:
    return qwen2(vocab_size=152064, d_model=5120, layers=48, heads=40, kv_heads=8, d_ff=13824, eps=1e-5)


def qwen25_32b() -> TransformerConfig:
    return qwen2(vocab_size=152064, d_model=5120, layers=64, heads=40, kv_heads=8, d_ff=27648, eps=1e-5)


def qwen3_0_6b() -> TransformerConfig:
    return qwen3(d_model=1024, layers=28, heads=16, kv_heads=8, d_ff=3072, tied=True)


def qwen3_1_7b() -> TransformerConfig:
    return qwen3(d_model=2048, layers=28, heads=16, kv_heads=8, d_ff=6144, tied=True)


def qwen3_4b() -> TransformerConfig:
    return qwen3(d_model=2560, layers=36, heads=32, kv_heads=8, d_ff=9728, tied=True)


def qwen3_8b() -> TransformerConfig:
    return qwen3(d_model=4096, layers=36, heads=32, kv_heads=8, d_ff=12288)


def qwen3_14b() -> TransformerConfig:
    return qwen3(d_model=5120, layers=40, heads=40, kv_heads=8, d_ff=17408)


def qwen3_32b() -> TransformerConfig:
    return qwen3(d_model=5120, layers=64, heads=64, kv_heads=8, d_ff=25600)


def qwen3_30b_a3b() -> TransformerConfig:
    return qwen3_moe(d_model=2048, layers=48, heads=32, kv_heads=4, d_ff=768)


def qwen3_235b_a22b() -> TransformerConfig:
    return qwen3_moe(d_model=4096, layers=94, heads=64, kv_heads=4, d_ff=1536)
