"""Adapters: nothing at first, the same function once merged, and only they move."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain.configs.llama import llama
from pretrain.errors import UserError
from pretrain.models import convert, tree
from pretrain.models.config import LoraConfig, MlpConfig, MoeConfig, RouterConfig
from pretrain.models.lora import merged
from pretrain.models.transformer import Inputs, Transformer
from pretrain.opened import with_parameters
from pretrain.optimizer.build import build
from pretrain.optimizer.config import ADAPTER_GROUPS, Constant, OptimizerConfig

BASE = llama(vocab_size=32, d_model=16, layers=2, heads=4, kv_heads=2, d_ff=24)
MIXTURE = MoeConfig(experts=4, router=RouterConfig(top_k=2), expert=MlpConfig(d_ff=8))
ADAPTERS = (LoraConfig(pattern="mixer/(query|out)$", rank=3), LoraConfig(pattern="mlp/", rank=2, dora=True))
TOKENS = jnp.asarray([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def mixed():
    block = BASE.decoder.pattern[0]
    return replace(BASE, decoder=replace(BASE.decoder, pattern=(replace(block, mlp=MIXTURE),), suffix=(block,)))


@jax.jit
def logits(model: Transformer) -> jax.Array:
    return model.logits(model(Inputs(tokens=TOKENS)).hidden_BTD)


def trained(config) -> Transformer:
    """With adapters that say something."""
    model = Transformer(replace(config, adapters=ADAPTERS), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    noisy = {"b": 0.3, "magnitude": 0.2}

    def of(name, p):
        noise = noisy.get(name.rpartition("/")[2], 0.0)
        return p[...] + noise * jnp.asarray(rng.normal(size=p.shape), jnp.float32)

    return tree.like(model, of)


def test_fresh_adapters_change_nothing(tmp_path):
    plain = Transformer(BASE, rngs=nnx.Rngs(1))
    convert.save(plain, tmp_path)
    model = Transformer(replace(BASE, adapters=ADAPTERS), rngs=nnx.Rngs(0))
    assert np.abs(logits(model) - logits(plain)).max() > 1e-3
    np.testing.assert_allclose(logits(with_parameters(model, str(tmp_path))[0]), logits(plain), atol=1e-6)


@pytest.mark.parametrize("config", [BASE, mixed()], ids=["dense", "experts"])
def test_a_merged_model_is_the_same_function_without_adapters(config, tmp_path):
    model = trained(config)
    whole = merged(model)
    plain = Transformer(config, rngs=nnx.Rngs(0))
    assert tree.params(whole).keys() == tree.params(plain).keys()
    assert whole.config == config
    assert np.abs(logits(plain) - logits(model)).max() > 1e-2
    np.testing.assert_allclose(logits(whole), logits(model), atol=1e-5)


def test_an_export_holds_the_merged_model(tmp_path):
    model = trained(BASE)
    convert.save(model, tmp_path)
    np.testing.assert_allclose(logits(convert.load(tmp_path)[1]), logits(model), atol=1e-5)


def test_dora_keeps_the_norm_of_every_output():
    """With the norm of a column learned apart, the direction's length means nothing (Liu et al. 2024, equation 5)."""
    model = trained(BASE)
    up = model.decoder.pattern[0].mlp.up
    w = np.asarray(up.weight(jnp.float32))
    np.testing.assert_allclose(np.linalg.norm(w, axis=1), np.abs(up.magnitude[...]), rtol=1e-5)


def test_only_adapters_move():
    model = trained(BASE)
    config = OptimizerConfig(schedule=Constant(warmup_steps=0), peak_lr=0.1, groups=ADAPTER_GROUPS)
    optimizer = build(config, tree.names(model), tree.matrix_axes(model), 9, tree.sign_rates(model))
    grads = jax.jit(jax.grad(lambda m: jnp.sum(jnp.square(logits(m)))))(model)
    updates, state = optimizer.update(grads, optimizer.init(model), model)
    moved = {name for name, u in tree.params(updates).items() if np.abs(np.asarray(u[...])).max() > 0}
    own = {name for name in tree.params(model) if name.rpartition("/")[2] in ("a", "b", "magnitude")}
    assert moved == own == set(state.slots)


def test_a_pattern_without_a_matrix_is_refused():
    with pytest.raises(UserError, match="'mixer/quary' is found in no matrix"):
        Transformer(replace(BASE, adapters=(LoraConfig(pattern="mixer/quary"),)), rngs=nnx.Rngs(0))
