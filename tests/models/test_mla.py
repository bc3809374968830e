"""Latent attention decodes on latents alone, and that changes nothing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain.configs.deepseek import deepseek, v3_router
from pretrain.models.cache import Latents, empty_cache
from pretrain.models.config import RouterConfig, TransformerConfig
from pretrain.models.transformer import Inputs, Transformer

SIZES = {"vocab_size": 61, "d_model": 32, "layers": 3, "dense_layers": 1, "heads": 4, "kv_rank": 12, "nope_dim": 6}
SIZES |= {"rope_dim": 4, "value_dim": 10, "d_ff": 12, "d_ff_dense": 40, "experts": 8, "shared": 1}


def biased(config: TransformerConfig) -> TransformerConfig:
    def with_bias(blocks):
        return tuple(replace(b, mixer=replace(b.mixer, bias=True)) for b in blocks)

    d = config.stack
    return replace(config, decoder=replace(d, prefix=with_bias(d.prefix), pattern=with_bias(d.pattern)))


CONFIGS = {
    "v2_lite": deepseek(**SIZES, query_rank=None, router=RouterConfig(top_k=2, normalise=False)),
    "v3": deepseek(**SIZES, query_rank=20, router=v3_router(top_k=2, groups=4, top_groups=2), factor=4.0),
    "biased": biased(deepseek(**SIZES, query_rank=20, router=RouterConfig(top_k=2), factor=4.0, mscale=0.7)),
}


def made(config: TransformerConfig) -> Transformer:
    rng, shapes = np.random.default_rng(0), jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(scale=0.3, size=x.shape), x.dtype), shapes)


# Compilation at this level is seven times faster than the default.
@jax.jit(compiler_options={"xla_backend_optimization_level": 0})
def read(model, inputs, cache):
    return model(inputs, cache=cache)


@pytest.mark.parametrize("pieces", [(5, 1, 1, 4), (1, 10)])
@pytest.mark.parametrize("name", CONFIGS)
def test_absorbed_decoding_equals_the_spelled_out_form(name, pieces):
    config = CONFIGS[name]
    model, (B, T) = made(config), (2, 11)
    tokens = jax.random.randint(jax.random.key(0), (B, T), 0, 61)
    segments = (jnp.arange(T) >= jnp.array([0, 3])[:, None]).astype(jnp.int32)  # padding before the second prompt
    positions = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
    whole = read(model, Inputs(tokens=tokens, segments=segments, positions=positions), None).hidden_BTD
    cache, start, parts = empty_cache(config, B, 16, jnp.float32), 0, []
    for n in pieces:
        part = slice(start, start + n)
        inputs = Inputs(tokens=tokens[:, part], segments=segments[:, part], positions=positions[:, part])
        out = read(model, inputs, cache)
        cache, start = out.cache, start + n
        parts.append(out.hidden_BTD)
    found, there = jnp.concatenate(parts, axis=1), segments[..., None] != 0
    assert jnp.abs((found - whole) * there).max() <= 2e-5


def test_the_cache_holds_one_latent_and_one_rotary_key_a_token():
    cache = empty_cache(CONFIGS["v3"], 1, 16, jnp.float32)
    (first,), (rest,) = cache.layers.prefix, cache.layers.pattern
    assert isinstance(first.mixer, Latents)
    assert (first.mixer.latents_BSR.shape, first.mixer.rotary_BSH.shape) == ((1, 16, 12), (1, 16, 4))
    assert rest.mixer.latents_BSR.shape == (2, 1, 16, 12)
