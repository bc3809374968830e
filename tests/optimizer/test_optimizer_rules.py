"""AdamW, Lion and Adafactor against implementations that we did not write."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pretrain.optimizer.build import build
from pretrain.optimizer.config import Adafactor, AdamW, Constant, Group, Lion, Momentum, OptimizerConfig

PLAIN = OptimizerConfig(schedule=Constant(warmup_steps=0), peak_lr=1e-3, clip_norm=None, groups=(Group(pattern=""),))


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return {f"p{i}": jnp.asarray(rng.normal(size=shape), jnp.float32) for i, shape in enumerate(shapes)}


def run(tx, params, steps, like=None):
    """The parameters after `steps` updates on random gradients of very different sizes."""
    state, update = tx.init(params), jax.jit(tx.update)
    for i in range(steps):
        grads = {k: g * 10.0 ** -(i % 5) for k, g in draw(100 + i, *(p.shape for p in params.values())).items()}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def ours(config, params, axes=None):
    return build(config, {k: k for k in params}, axes or dict.fromkeys(params), 1000)


def assert_close(a, b, tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance, rtol=0), a, b)


def test_adamw_is_torchs_adamw():
    torch = pytest.importorskip("torch")
    # As small as initialised weights are: near 1, fifty roundings of the parameter alone come to 1e-6.
    params = jax.tree.map(lambda p: 0.1 * p, draw(0, (16, 8), (8,), (3, 4, 5)))
    config = replace(PLAIN, kind=AdamW(b2=0.999), groups=(Group(pattern="p1", weight_decay=0.0), Group(pattern="")))
    theirs = {k: torch.nn.Parameter(torch.tensor(np.array(p))) for k, p in params.items()}
    decayed = {"params": [theirs["p0"], theirs["p2"]], "weight_decay": 0.1}
    optimizer = torch.optim.AdamW(
        [decayed, {"params": [theirs["p1"]], "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.999), eps=1e-8
    )
    tx = ours(config, params)
    state, update = tx.init(params), jax.jit(tx.update)
    for i in range(50):
        grads = draw(100 + i, (16, 8), (8,), (3, 4, 5))
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for k, p in theirs.items():
            p.grad = torch.tensor(np.array(grads[k]))
        optimizer.step()
        assert_close(params, {k: p.detach().numpy() for k, p in theirs.items()}, 1e-6)


def test_lion_is_optaxs_lion():
    params = draw(0, (16, 8), (8,))
    theirs = optax.lion(1e-3, b1=0.9, b2=0.99, weight_decay=0.1)
    assert_close(run(ours(replace(PLAIN, kind=Lion()), params), params, 50), run(theirs, params, 50), 1e-6)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Adafactor(), {}),
        (Adafactor(momentum=Momentum()), {"momentum": 0.9}),
        (
            Adafactor(clip_rms=None, minimum_scale=None, factored_from=8),
            {"clipping_threshold": None, "multiply_by_parameter_scale": False, "min_dim_size_to_factor": 8},
        ),
    ],
)
def test_adafactor_is_optaxs_adafactor(kind, options):
    params = draw(0, (160, 130), (130, 140), (12, 9), (140,))
    axes = {"p0": (0, 1, 1), "p1": (0, 1, 1), "p2": (0, 1, 1), "p3": None}
    config = replace(PLAIN, kind=kind, weight_decay=0.0)
    mine, theirs = run(ours(config, params, axes), params, 20), run(optax.adafactor(1e-3, **options), params, 20)
    assert_close(mine, theirs, 1e-6)


def test_adafactor_of_a_wide_stack_is_adafactor_of_each_flat_matrix():
    config = replace(PLAIN, kind=Adafactor(factored_from=8))
    wide = draw(0, (3, 16, 2, 4, 3))
    stacked = run(ours(config, wide, {"p0": (1, 1, 3)}), wide, 5)["p0"]
    for layer in range(3):
        tx = ours(config, wide, {"p0": (0, 1, 1)})
        params = {"p0": wide["p0"][layer].reshape(16, 24)}
        state = tx.init(params)
        assert {k: v.shape for k, v in state.slots["p0"].items()} == {"row": (16,), "column": (24,)}
        for i in range(5):
            grads = {"p0": draw(100 + i, (3, 16, 2, 4, 3))["p0"][layer].reshape(16, 24) * 10.0 ** -(i % 5)}
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(stacked[layer].reshape(16, 24), params["p0"], atol=1e-6)


def test_adafactor_keeps_a_row_and_a_column_per_matrix():
    params = {"p0": jnp.zeros((3, 256, 2, 4, 32)), "p1": jnp.zeros((3, 256)), "table": jnp.zeros((512, 128))}
    axes = {"p0": (1, 1, 3), "p1": None, "table": None}
    slots = ours(replace(PLAIN, kind=Adafactor()), params, axes).init(params).slots
    shapes = jax.tree.map(jnp.shape, slots)
    assert shapes == {
        "p0": {"row": (3, 256), "column": (3, 2, 4, 32)},
        "p1": {"square": (3, 256)},
        "table": {"row": (512,), "column": (128,)},
    }


def test_moments_stored_in_bfloat16_give_f32_updates_close_to_f32_moments():
    params = draw(0, (64, 32))
    narrow = ours(replace(PLAIN, kind=AdamW(first_dtype="bfloat16", second_dtype="bfloat16")), params)
    wide = ours(PLAIN, params)
    grads = draw(1, (64, 32))
    (a, state), (b, _) = (tx.update(grads, tx.init(params), params) for tx in (narrow, wide))
    # In the first step nothing stored in bfloat16 has been read back: only f32 arithmetic gives equal updates.
    assert_close(a, b, 0)
    assert {k: v.dtype for k, v in state.slots["p0"].items()} == {"mean": jnp.bfloat16, "square": jnp.bfloat16}
    assert_close(run(narrow, params, 20), run(wide, params, 20), 1e-3)


def test_stochastic_rounding_is_right_on_average_and_follows_where_rounding_to_nearest_stands_still():
    value = 1 + 2.0**-10  # an eighth of the way from one bfloat16 to the next
    kind = AdamW(b1=0.0, b2=0.9999, second_dtype="bfloat16")
    found = {}
    for stored in ("float32", "bfloat16", "bfloat16_stochastic"):
        params, grads = {"p0": jnp.zeros((256, 256))}, {"p0": jnp.full((256, 256), value)}
        tx = ours(replace(PLAIN, kind=replace(kind, first_dtype=stored, second_dtype=stored)), params)
        state = tx.init(params)
        update = jax.jit(lambda state, tx=tx, grads=grads, params=params: tx.update(grads, state, params)[1])
        state = update(state)
        first = state.slots["p0"]["mean"].astype(jnp.float32)
        for _ in range(299):
            state = update(state)
        found[stored] = first, state.slots["p0"]["square"].astype(jnp.float32)
    assert set(np.unique(found["bfloat16"][0])) == {1.0}
    up, error = found["bfloat16_stochastic"][0] > 1, np.sqrt(7 / 64 / 256**2)  # of the share of ones, binomial
    assert abs(up.mean() - 1 / 8) < 4 * error
    exact, nearest, stochastic = (float(found[k][1].mean()) for k in ("float32", "bfloat16", "bfloat16_stochastic"))
    assert abs(stochastic / exact - 1) < 2e-3
    assert abs(nearest / exact - 1) > 0.02
    shares = np.asarray(found["bfloat16_stochastic"][1])
    assert np.unique(shares).size > 2
    assert np.isfinite(shares).all()


def test_stochastic_rounding_keeps_what_is_not_finite_and_what_is_exact():
    params = {"p0": jnp.zeros(4)}
    tx = ours(replace(PLAIN, clip_norm=None, kind=AdamW(b1=0.0, first_dtype="bfloat16_stochastic")), params)
    grads = {"p0": jnp.array([jnp.nan, jnp.inf, 1.5, -0.0])}
    mean = tx.update(grads, tx.init(params), params)[1].slots["p0"]["mean"].astype(jnp.float32)
    np.testing.assert_array_equal(mean, np.array([np.nan, np.inf, 1.5, -0.0], np.float32))
