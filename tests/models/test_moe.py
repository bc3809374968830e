"""Mixtures of experts against loops over tokens, and the balancing of their load."""

from contextlib import nullcontext
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain.configs.llama import llama
from pretrain.models import tree
from pretrain.models.config import InitConfig, MlpConfig, MoeConfig, RouterConfig
from pretrain.models.init import Init
from pretrain.models.layers import grouped
from pretrain.models.layers.grouped import BLOCK
from pretrain.models.layers.moe import Moe
from pretrain.models.transformer import Inputs, Transformer
from pretrain.optimizer.build import build
from pretrain.optimizer.config import Constant, OptimizerConfig

D, E = 16, 6
PLAIN = MoeConfig(experts=E, router=RouterConfig(top_k=2), expert=MlpConfig(d_ff=12))
ODD_EXPERT = MlpConfig(d_ff=12, activation="gelu_quick", bias=True, clamp=0.5, up_offset=1.0)
KINDS = {
    "softmax": PLAIN,
    "sigmoid, scaled": replace(PLAIN, router=RouterConfig(top_k=3, score="sigmoid", normalise=False, scale=2.5)),
    "balanced": replace(PLAIN, router=RouterConfig(top_k=2, score="sigmoid", balance_rate=0.1)),
    "groups by their best": replace(PLAIN, router=RouterConfig(top_k=2, groups=3, top_groups=2)),
    "groups by two": replace(PLAIN, router=RouterConfig(top_k=2, groups=2, top_groups=1, group_score="top2")),
    "on input": replace(PLAIN, router=RouterConfig(top_k=1, score="sigmoid", normalise=False, on_input=True)),
    "biases and clamps": replace(PLAIN, router=RouterConfig(top_k=2, bias=True), expert=ODD_EXPERT),
    "without a gate": replace(PLAIN, expert=MlpConfig(d_ff=12, activation="relu2", gated=False)),
}


def made(config: MoeConfig, seed: int = 0) -> Moe:
    stack = llama(vocab_size=9, d_model=D, layers=1, heads=1, d_ff=4)
    moe = nnx.eval_shape(lambda: Moe(config, D, Init.of(stack, nnx.Rngs(seed))))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(0.5 * rng.normal(size=p.shape), jnp.float32), moe)


@jax.jit
def run(moe: Moe, x_BTD: jax.Array, segments_BT: jax.Array | None):
    y_BTD, load = moe(x_BTD, segments_BT)
    return y_BTD, moe.losses(load)


def inputs(rows: int = 2, length: int = 7) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (rows, length, D))


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_quick": lambda x: x / (1 + np.exp(-1.702 * x)),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}


def one_expert(moe: Moe, e: int, x_D: np.ndarray) -> np.ndarray:
    """The MLP of one expert."""
    c = moe.config.expert
    w = {name: np.asarray(p[...])[e] for name, p in vars(moe).items() if isinstance(p, nnx.Param) and p.shape[0] == E}
    up, act = x_D @ w["up"] + w.get("up_bias", 0), ACTIVATIONS[c.activation]
    if not c.gated:
        return act(up) @ w["down"]
    gate = x_D @ w["gate"] + w.get("gate_bias", 0)
    if c.clamp is not None:
        up, gate = np.clip(up, -c.clamp, c.clamp), np.minimum(gate, c.clamp)
    return (act(gate) * (up + c.up_offset)) @ w["down"] + w.get("down_bias", 0)


def by_hand(moe: Moe, x_D: np.ndarray) -> np.ndarray:
    """One token, as the papers say it."""
    r = moe.config.router
    logits = x_D @ np.asarray(moe.router[...]) + (0 if moe.router_bias is None else np.asarray(moe.router_bias[...]))
    scores = 1 / (1 + np.exp(-logits)) if r.score == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
    choice = scores + (0 if moe.balance is None else np.asarray(moe.balance[...]))
    if r.groups > 1:
        groups = choice.reshape(r.groups, -1)
        best = np.sort(groups, axis=1)[:, -1 if r.group_score == "max" else -2 :].sum(1)
        shut = np.argsort(-best)[r.top_groups :]
        groups = groups.copy()
        groups[shut] = -np.inf
        choice = groups.reshape(-1)
    chosen = np.argsort(-choice)[: r.top_k]
    weights = scores[chosen] / (scores[chosen].sum() if r.normalise else 1) * r.scale
    if r.on_input:
        return sum(one_expert(moe, int(e), w * x_D) for e, w in zip(chosen, weights))
    return sum(w * one_expert(moe, int(e), x_D) for e, w in zip(chosen, weights))


@pytest.mark.parametrize("capacity", [None, float(E)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_token_gets_the_weighted_answers_of_its_experts(kind, capacity):
    moe, x = made(replace(KINDS[kind], capacity=capacity)), inputs()
    y, _ = run(moe, x, None)
    expected = np.stack([[by_hand(moe, t) for t in row] for row in np.asarray(x)])
    np.testing.assert_allclose(y, expected, rtol=2e-4, atol=2e-5)


def test_a_shared_expert_answers_every_token():
    moe, x = made(replace(PLAIN, shared=MlpConfig(d_ff=5))), inputs()
    alone = nnx.clone(moe)
    alone.shared = None
    np.testing.assert_allclose(run(moe, x, None)[0] - run(alone, x, None)[0], moe.shared(x), atol=1e-5)


def test_a_full_expert_lets_later_tokens_pass_and_padding_takes_no_place():
    config = MoeConfig(experts=2, router=RouterConfig(top_k=1), expert=MlpConfig(d_ff=12), capacity=0.5)
    moe = made(config)
    moe.router[...] = jnp.zeros((D, 2))  # a tie: everyone goes to expert 0
    x = inputs(rows=1, length=8)
    segments = jnp.asarray([[1, 0, 1, 1, 1, 1, 1, 0]])
    y = np.asarray(run(moe, x, segments)[0])[0]
    answered = [t for t in range(8) if np.abs(y[t]).max() > 0]
    assert answered == [0, 2]  # 8 tokens x 1 choice / 2 experts x 0.5 are two places


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_product_in_blocks_is_the_ragged_one_with_its_gradients(platform, monkeypatch):
    monkeypatch.setattr(grouped, "GPU_BLOCKS", (64, 8))
    monkeypatch.setattr(grouped.place, "platform", lambda: platform)
    rng, n = np.random.default_rng(0), 3 * BLOCK + 5
    x, w = jnp.asarray(rng.normal(size=(n, 7)), jnp.float32), jnp.asarray(rng.normal(size=(5, 7, 4)), jnp.float32)
    for sizes in ([n, 0, 0, 0, 0], [0, 0, n - 1, 0, 1], [BLOCK, BLOCK - 1, 1, 0, n - 2 * BLOCK]):
        sizes = jnp.asarray(sizes, jnp.int32)
        weigh = rng.normal(size=(n, 4)).astype(np.float32)

        def total(product, x, w, sizes=sizes, weigh=weigh):
            return jnp.sum(product(x, w, sizes) * weigh)

        ours = jax.value_and_grad(lambda *a: total(grouped.grouped_matmul, *a), (0, 1))(x, w)
        theirs = jax.value_and_grad(lambda *a: total(jax.lax.ragged_dot, *a), (0, 1))(x, w)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


def of_groups_alone(product, n: int, sizes: list[int]) -> None:
    """Rows after the last group are no numbers, forwards and backwards, and nothing else becomes none."""
    rng, rows, sizes_E = np.random.default_rng(0), sum(sizes), jnp.asarray(sizes, jnp.int32)
    x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((n, 128), (len(sizes), 128, 256)))
    dy = jnp.asarray(rng.normal(size=(n, 256)), jnp.float32)
    wanted, pull = jax.vjp(lambda x, w: jax.lax.ragged_dot(x, w, sizes_E), x[:rows], w)
    found, back = jax.vjp(lambda x, w: product(x, w, sizes_E), x.at[rows:].set(jnp.nan), w)
    (dx, dw), (dx_wanted, dw_wanted) = back(dy.at[rows:].set(jnp.nan)), pull(dy[:rows])
    for a, b in ((found[:rows], wanted), (dx[:rows], dx_wanted), (dw, dw_wanted)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [8, 64])
def test_blocks_read_no_row_after_the_last_group(block):
    for sizes in ([100, 3, 150], [0, 7, 0], [0, 0, 0]):
        of_groups_alone(lambda *a: grouped.blocked(*a, block), 384, sizes)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_one_expert_is_an_ordinary_product(platform, monkeypatch):
    monkeypatch.setattr(grouped.place, "platform", lambda: platform)
    for sizes in ([384], [100], [0]):
        of_groups_alone(grouped.grouped_matmul, 384, sizes)


def as_if_on_tpu():
    """tokamax asks for which chip its kernels are."""
    chip = jax.sharding.AbstractDevice(device_kind="TPU v5", num_cores=1, platform="tpu")
    kinds = (jax.sharding.AxisType.Auto,)
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), kinds, abstract_device=chip))


@pytest.mark.parametrize("kernels", ["jax", "tokamax"])
def test_the_kernel_of_tpus_multiplies_each_row_by_the_matrix_of_its_group(kernels):
    """Interpreted."""
    if kernels == "tokamax":
        pytest.importorskip("tokamax")
    for sizes in ([384, 0, 0], [100, 0, 284], [7, 128, 100], [0, 0, 0]):
        with as_if_on_tpu() if kernels == "tokamax" else nullcontext():
            of_groups_alone(lambda *a: grouped.tiled(*a, kernels, True), 384, sizes)


def test_an_even_load_has_the_least_balance_loss_and_padding_does_not_count():
    router = RouterConfig(top_k=1, balance_loss=1.0, z_loss=1.0)
    moe, x = made(replace(PLAIN, router=router)), inputs(length=600)
    losses = run(moe, x, None)[1]
    moe.router[...] = jnp.zeros((D, E)).at[0, 0].set(9.0)
    crowded = run(moe, jnp.abs(x), None)[1]
    assert 1.0 <= losses["balance"] < 2.0 < crowded["balance"] <= E
    half = jnp.arange(600)[None] < jnp.asarray([[300], [300]])
    padded, cut = run(moe, x, half.astype(jnp.int32))[1], run(moe, x[:, :300], None)[1]
    for name in cut:
        np.testing.assert_allclose(padded[name], cut[name], rtol=1e-5)


def test_steps_of_the_balancing_bias_even_out_the_load():
    base = replace(llama(vocab_size=32, d_model=D, layers=2, heads=2, d_ff=8), init=InitConfig(std=0.5))
    mlp = replace(KINDS["balanced"], router=replace(KINDS["balanced"].router, top_k=1, balance_rate=0.01))
    block = replace(base.decoder.pattern[0], mlp=mlp)
    model = Transformer(replace(base, decoder=replace(base.decoder, pattern=(block,))), rngs=nnx.Rngs(3))
    tokens = jax.random.randint(jax.random.key(2), (4, 64), 0, 32)
    config = OptimizerConfig(schedule=Constant(warmup_steps=0), peak_lr=1e-9)
    optimizer = build(config, tree.names(model), tree.matrix_axes(model), 99, tree.sign_rates(model))
    state = optimizer.init(model)

    @jax.jit
    def step(model, state):
        grads = jax.grad(lambda m: m(Inputs(tokens=tokens)).losses["_balance"])(model)
        updates, state = optimizer.update(grads, state, model)
        return jax.tree.map(jnp.add, model, updates), state, grads

    first, _, grads = step(model, state)
    for _ in range(60):
        model, state, last = step(model, state)
    excess = [np.abs(np.asarray(g.decoder.pattern[0].mlp.balance[...])).max() for g in (grads, last)]
    assert excess[1] < 0.5 * excess[0]
    moved = np.asarray(first.decoder.pattern[0].mlp.balance[...])
    pushed = np.asarray(grads.decoder.pattern[0].mlp.balance[...])
    np.testing.assert_allclose(moved, -0.01 * np.sign(pushed), atol=1e-7)
    assert state.grad_norm == 0  # the bias takes no part in clipping
