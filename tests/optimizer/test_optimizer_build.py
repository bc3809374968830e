"""The assembled update: decay, clipping, freezing, group rates, what the state says."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pretrain.errors import UserError
from pretrain.optimizer.build import build, clip_by_global_norm, global_norm, learning_rate
from pretrain.optimizer.config import (
    Adafactor,
    AdamW,
    Constant,
    Cosine,
    Group,
    Lion,
    Muon,
    OptimizerConfig,
)

CONFIG = OptimizerConfig(schedule=Constant(warmup_steps=0), peak_lr=0.1)
NAMES = {"embed": "embed/tokens", "up": "decoder/pattern/0/mlp/up", "scale": "decoder/pattern/0/pre/scale"}
AXES = {"embed": (0, 1, 1), "up": (1, 1, 1), "scale": None}
PARAMS = {"embed": jnp.ones((10, 4)), "up": jnp.ones((2, 4, 8)), "scale": jnp.ones((2, 4))}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)
KINDS = [
    CONFIG,
    replace(CONFIG, kind=Lion()),
    replace(CONFIG, kind=Adafactor(factored_from=4)),
    replace(CONFIG, kind=Muon()),
]
every_kind = pytest.mark.parametrize("config", KINDS, ids=["adamw", "lion", "adafactor", "muon"])


def step(config, grads, params=PARAMS, total=10):
    tx = build(config, NAMES, AXES, total)
    updates, state = tx.update(grads, tx.init(params), params)
    return optax.apply_updates(params, updates), state


@every_kind
def test_decay_shrinks_matrices_by_rate_times_decay_and_leaves_vectors_alone(config):
    after, _ = step(config, ZEROS)
    np.testing.assert_allclose(after["up"], 1 - 0.1 * 0.1, rtol=1e-6)
    np.testing.assert_allclose(after["embed"], 1 - 0.1 * 0.1, rtol=1e-6)
    np.testing.assert_array_equal(after["scale"], 1)


@every_kind
def test_bfloat16_parameters_stay_bfloat16_with_f32_state(config):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    after, state = step(config, params, params)
    assert {p.dtype for p in jax.tree.leaves(after)} == {jnp.dtype(jnp.bfloat16)}
    assert {s.dtype for s in jax.tree.leaves(state.slots)} == {jnp.dtype(jnp.float32)}


@every_kind
def test_the_state_keeps_its_shapes_and_types_through_an_update(config):
    tx = build(config, NAMES, AXES, 10)
    before = jax.eval_shape(tx.init, PARAMS)
    _, after = jax.eval_shape(tx.update, PARAMS, before, PARAMS)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), before, after)
    assert all(jax.tree.leaves(same))


def test_frozen_parameters_do_not_move_have_no_state_and_do_not_count_in_the_norm():
    config = replace(CONFIG, groups=(Group(pattern="embed|scale", frozen=True), Group(pattern="")))
    grads = {"embed": jnp.full((10, 4), 1e6), "up": jnp.full((2, 4, 8), 0.125), "scale": jnp.full((2, 4), jnp.nan)}
    after, state = step(config, grads)
    np.testing.assert_array_equal(after["embed"], PARAMS["embed"])
    np.testing.assert_array_equal(after["scale"], PARAMS["scale"])
    assert not np.array_equal(after["up"], PARAMS["up"])
    assert list(state.slots) == ["decoder/pattern/0/mlp/up"]
    assert state.grad_norm == 1


def test_a_group_scales_the_rate_of_direction_and_decay():
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    halved = replace(CONFIG, groups=(Group(pattern="up", lr_scale=0.5), Group(pattern="")))
    plain = replace(CONFIG, groups=(Group(pattern=""),))
    (a, _), (b, _) = step(halved, grads), step(plain, grads)
    np.testing.assert_allclose(a["up"] - 1, 0.5 * (b["up"] - 1), rtol=1e-5)
    np.testing.assert_array_equal(a["embed"], b["embed"])


def test_a_group_can_have_its_own_kind():
    config = replace(CONFIG, groups=(Group(pattern="up", kind=Lion()), Group(pattern="")))
    _, state = step(config, ZEROS)
    assert set(state.slots["decoder/pattern/0/mlp/up"]) == {"mean"}
    assert set(state.slots["embed/tokens"]) == {"mean", "square"}


def test_the_state_reports_step_norm_and_rate():
    config = replace(CONFIG, schedule=Cosine(warmup_steps=4))
    tx = build(config, NAMES, AXES, 10)
    state, grads = tx.init(PARAMS), jax.tree.map(jnp.ones_like, PARAMS)
    for i in range(10):
        _, state = tx.update(grads, state, PARAMS)
        assert state.step == i + 1
        assert state.learning_rate == learning_rate(config, i, 10)
        np.testing.assert_allclose(state.grad_norm, (40 + 64 + 8) ** 0.5, rtol=1e-6)


def test_an_update_clips_as_clip_by_global_norm_does():
    grads = jax.tree.map(lambda p: p * jnp.arange(p.size).reshape(p.shape), PARAMS)
    kind = AdamW(eps=1.0)  # Without a large eps AdamW's first step does not see the gradient's size.
    clipped, norm = clip_by_global_norm(grads, 1.0)
    np.testing.assert_allclose(norm, np.linalg.norm(np.concatenate([np.ravel(g) for g in grads.values()])), rtol=1e-6)
    np.testing.assert_allclose(global_norm(jax.tree.leaves(clipped)), 1.0, rtol=1e-6)
    a, state = step(replace(CONFIG, kind=kind), grads)
    b, _ = step(replace(CONFIG, kind=kind, clip_norm=None), clipped)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)
    np.testing.assert_array_equal(state.grad_norm, norm)


def test_short_gradients_are_not_touched_by_clipping():
    grads = jax.tree.map(lambda p: p / 100, PARAMS)
    for limit in (1.0, None):
        clipped, norm = clip_by_global_norm(grads, limit)
        jax.tree.map(np.testing.assert_array_equal, clipped, grads)
        np.testing.assert_allclose(norm, 112**0.5 / 100, rtol=1e-6)


def test_a_gradient_that_is_not_finite_shows_in_the_norm():
    _, state = step(CONFIG, {**ZEROS, "scale": jnp.full((2, 4), jnp.nan)})
    assert jnp.isnan(state.grad_norm)


def test_any_pytree_with_registered_nodes_and_none_children_works():
    @jax.tree_util.register_dataclass
    @dataclass
    class Block:
        weight: Any
        missing: Any
        bias: Any

    params = [Block(jnp.ones((4, 4)), None, jnp.ones(4))]
    tx = build(CONFIG, [Block("0/weight", None, "0/bias")], [Block((0, 1, 1), None, None)], 10)
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert type(updates[0]) is Block
    assert updates[0].missing is None
    assert set(state.slots) == {"0/weight", "0/bias"}


def test_problems_of_groups_and_schedule_are_told_when_building():
    with pytest.raises(UserError, match="match no pattern"):
        build(replace(CONFIG, groups=(Group(pattern="up"),)), NAMES, AXES, 10)
    with pytest.raises(UserError, match="leaves nothing of steps=10"):
        build(replace(CONFIG, schedule=Cosine(warmup_steps=10)), NAMES, AXES, 10)


def test_a_tree_that_is_not_the_named_one_is_refused():
    with pytest.raises(ValueError, match="found 2 arrays, expected one for each of the 3 names"):
        build(CONFIG, NAMES, AXES, 10).init({"a": jnp.ones(2), "b": jnp.ones(2)})
    with pytest.raises(ValueError, match="same name"):
        build(CONFIG, {**NAMES, "embed": NAMES["up"]}, AXES, 10)
