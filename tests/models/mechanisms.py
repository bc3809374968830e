"""A tiny model of every mechanism that decoding has to get right."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pretrain.configs.llama import llama
from pretrain.models.config import (
    Alibi,
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    LearnedPositions,
    MlaConfig,
    MlpConfig,
    MoeConfig,
    NormConfig,
    RelativeBias,
    RouterConfig,
    StackConfig,
    TransformerConfig,
)
from pretrain.models.transformer import Transformer

VOCABULARY = 64
WIDTH = 32
LAYER = NormConfig(kind="layer", bias=True)
LLAMA = llama(vocab_size=VOCABULARY, d_model=WIDTH, layers=2, heads=4, kv_heads=2, d_ff=48)
(LLAMA_BLOCK,) = LLAMA.decoder.pattern
MLA = MlaConfig(heads=4, query_rank=12, kv_rank=16, nope_dim=8, rope_dim=4, value_dim=6)
BIAS = RelativeBias(buckets=8, max_distance=20)
MOE = MoeConfig(
    experts=4,
    router=RouterConfig(top_k=2, score="sigmoid", balance_rate=0.001),
    expert=MlpConfig(d_ff=24),
    shared=MlpConfig(d_ff=24),
)


def decoder(*mixers, mlp=None) -> TransformerConfig:
    """A Llama whose layers attend in these ways, one after another."""
    pattern = tuple(replace(LLAMA_BLOCK, mixer=mixer, mlp=mlp or LLAMA_BLOCK.mlp) for mixer in mixers)
    return replace(LLAMA, decoder=replace(LLAMA.decoder, pattern=pattern, repeats=1))


def mixer(**changes) -> AttentionConfig:
    return replace(LLAMA_BLOCK.mixer, **changes)


def t5() -> TransformerConfig:
    attention = AttentionConfig(heads=4, kv_heads=4, head_dim=8, position=BIAS)
    across = replace(attention, causal=False, position=None)
    block = BlockConfig(mixer=attention, cross=across, mlp=MlpConfig(d_ff=48, activation="relu"), pre=NormConfig())
    inner = replace(block, mixer=replace(attention, causal=False), cross=None)
    stack = StackConfig(pattern=(block,), repeats=2, final_norm=NormConfig())
    return TransformerConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        decoder=stack,
        encoder=replace(stack, pattern=(inner,)),
        head=HeadConfig(tied=True, scale=WIDTH**-0.5),
    )


def bart(**norms: NormConfig) -> TransformerConfig:
    attention = AttentionConfig(heads=4, kv_heads=4, head_dim=8, bias=True, out_bias=True)
    mlp = MlpConfig(d_ff=48, activation="gelu", gated=False, bias=True)
    block = BlockConfig(mixer=attention, cross=replace(attention, causal=False), mlp=mlp, **norms)
    inner = replace(block, mixer=replace(attention, causal=False), cross=None)
    positions = LearnedPositions(length=96, offset=2)
    stack = StackConfig(pattern=(block,), repeats=2, positions=positions, embed_norm=LAYER)
    return TransformerConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        decoder=stack,
        encoder=replace(stack, pattern=(inner,)),
        head=HeadConfig(tied=True, bias=True),
    )


def latent_pair() -> TransformerConfig:
    """Latent attention that also looks at an encoder, with queries of fewer heads there."""
    config, across = t5(), AttentionConfig(heads=4, kv_heads=2, head_dim=8, causal=False)
    (block,) = config.decoder.pattern
    return replace(config, decoder=replace(config.decoder, pattern=(replace(block, mixer=MLA, cross=across),)))


PAIRS = {"t5": t5(), "bart": bart(residual=LAYER), "mbart": bart(pre=LAYER), "latent_pair": latent_pair()}
"""An encoder and a decoder."""
DECODERS = {
    "latents": decoder(MLA, replace(MLA, query_rank=None)),
    "experts": decoder(mixer(), mixer(), mlp=MOE),
    "chunks": decoder(mixer(chunk=8), mixer(position=None)),
    "alibi": decoder(mixer(position=Alibi()), mixer(position=Alibi(max_bias=4.0))),
    "sinks": decoder(mixer(sinks=True), mixer(sinks=True, window=6)),
    "relative": decoder(mixer(position=BIAS), mixer(position=replace(BIAS, shared=False))),
    "window": decoder(mixer(window=5), mixer(window=5, softcap=20.0)),
}
"""Other layers two by two; those of Llama and GPT-2 are in `test_generate`."""


def drawn(config: TransformerConfig, scale: float = 0.5, seed: int = 0) -> Transformer:
    """With matrices so large, and vectors so near to where they start, that the next token depends on the context."""
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))

    def one(path, x):
        name = jax.tree_util.keystr(path)
        std = 0.05 if "bias" in name or "scale" in name else scale
        return jnp.asarray(rng.normal(loc=float("scale" in name), scale=std, size=x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)
