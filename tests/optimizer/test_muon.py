"""Muon: orthogonal updates, of matrices inside wider stacked arrays."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pretrain.optimizer.build import build
from pretrain.optimizer.config import AdamW, Constant, Group, Muon, OptimizerConfig
from pretrain.optimizer.muon import MatrixAxes, newton_schulz, orthogonal_update

PLAIN = OptimizerConfig(
    kind=Muon(), schedule=Constant(warmup_steps=0), peak_lr=0.02, clip_norm=None, groups=(Group(pattern=""),)
)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def jordan(x, iterations=5):
    """Newton-Schulz as printed in Jordan's post, in double precision."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = np.asarray(x, np.float64)
    x = x / np.linalg.norm(x)
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if transposed else x


@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (48, 48), (16, 200)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_singular_values_end_near_one(shape, dtype):
    near = newton_schulz(normal(*shape).astype(dtype), 5).astype(jnp.float32)
    values = np.linalg.svd(near, compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_newton_schulz_is_jordans(shape):
    np.testing.assert_allclose(newton_schulz(normal(*shape), 5), jordan(normal(*shape)), atol=1e-5)


@pytest.mark.parametrize(
    ("axes", "shape", "flat"),
    [
        ((0, 1, 3), (16, 2, 3, 4), (16, 24)),
        ((0, 3, 1), (2, 3, 4, 16), (24, 16)),
        ((1, 1, 3), (5, 16, 2, 3, 4), (16, 24)),
        ((2, 1, 1), (2, 3, 8, 24), (8, 24)),
    ],
)
def test_a_wide_stack_is_a_loop_over_flat_matrices(axes, shape, flat):
    x = normal(*shape)
    update = orthogonal_update(Muon(), MatrixAxes(*axes), x)
    assert update.shape == shape
    for theirs, mine in zip(x.reshape(-1, *flat), update.reshape(-1, *flat)):
        np.testing.assert_allclose(mine, 0.2 * max(flat) ** 0.5 * jordan(theirs), atol=2e-5)


def test_match_rms_makes_an_update_as_large_as_adamws():
    for shape in [(64, 256), (256, 64), (128, 128)]:
        update = orthogonal_update(Muon(), MatrixAxes(0, 1, 1), normal(*shape))
        assert 0.15 < float(jnp.sqrt(jnp.mean(update**2))) < 0.25


def test_the_spectral_scale_grows_only_with_outputs():
    kind = Muon(scale="spectral")
    wide = orthogonal_update(kind, MatrixAxes(0, 1, 1), normal(8, 32))
    tall = orthogonal_update(kind, MatrixAxes(0, 1, 1), normal(32, 8))
    np.testing.assert_allclose(wide, 2 * jordan(normal(8, 32)), atol=2e-5)
    np.testing.assert_allclose(tall, jordan(normal(32, 8)), atol=2e-5)


def test_a_zero_gradient_stays_zero():
    assert not orthogonal_update(Muon(), MatrixAxes(0, 1, 1), jnp.zeros((8, 4))).any()


def test_a_whole_run_is_jordans_nesterov_momentum_with_moonlights_scale_and_decay():
    params = {"w": normal(16, 24)}
    expected, buffer = np.asarray(params["w"], np.float64), np.zeros((16, 24))
    tx = build(PLAIN, {"w": "w"}, {"w": (0, 1, 1)}, 10)
    state = tx.init(params)
    for i in range(10):
        grad = normal(16, 24, seed=1 + i)
        updates, state = tx.update({"w": grad}, state, params)
        params = optax.apply_updates(params, updates)
        buffer = 0.95 * buffer + 0.05 * np.asarray(grad)
        ahead = 0.95 * buffer + 0.05 * np.asarray(grad)
        expected -= 0.02 * (0.2 * 24**0.5 * jordan(ahead) + 0.1 * expected)
    np.testing.assert_allclose(params["w"], expected, atol=2e-5)


@pytest.mark.parametrize(("ours", "theirs"), [("match_rms", "match_rms_adamw"), ("spectral", "original")])
def test_muon_is_torchs_muon_up_to_its_bfloat16(ours, theirs):
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    start = normal(16, 48)
    # torch stores [out, in], we store [in, out].
    weight = torch.nn.Parameter(torch.tensor(np.array(start.T)))
    judge = torch.optim.Muon([weight], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn=theirs)
    tx = build(replace(PLAIN, kind=Muon(scale=ours)), {"w": "w"}, {"w": (0, 1, 1)}, 10)
    params = {"w": start}
    state = tx.init(params)
    for i in range(5):
        grad = normal(16, 48, seed=1 + i)
        updates, state = tx.update({"w": grad}, state, params)
        params = optax.apply_updates(params, updates)
        weight.grad = torch.tensor(np.array(grad.T))
        judge.step()
    moved, expected = np.asarray(params["w"] - start), weight.detach().numpy().T - np.asarray(start)
    assert np.linalg.norm(moved - expected) < 0.02 * np.linalg.norm(expected)


def test_vectors_and_tables_move_as_adamw_moves_them():
    names = {"up": "mlp/up", "scale": "norm/scale", "table": "embed/tokens", "head": "head/kernel"}
    axes = {"up": (0, 1, 1), "scale": None, "table": (0, 1, 1), "head": (0, 1, 1)}
    params = {"up": normal(8, 4), "scale": normal(8), "table": normal(12, 8), "head": normal(8, 12)}
    kind = Muon(rest=AdamW(b2=0.9))

    def moved(config):
        tx = build(config, names, axes, 10)
        return tx.update(params, tx.init(params), params)[0]

    muon, adamw = moved(replace(PLAIN, kind=kind)), moved(replace(PLAIN, kind=kind.rest))
    for name in ("scale", "table", "head"):
        np.testing.assert_array_equal(muon[name], adamw[name])
    assert np.abs(muon["up"] - adamw["up"]).max() > 1e-3
    all_of_it = moved(replace(PLAIN, kind=replace(kind, tables="^$")))
    assert np.abs(all_of_it["head"] - adamw["head"]).max() > 1e-3


def test_axes_that_do_not_describe_the_array_are_refused():
    with pytest.raises(ValueError, match="does not describe the matrices of an array with 3 axes"):
        orthogonal_update(Muon(), MatrixAxes(0, 1, 1), jnp.zeros((2, 3, 4)))
