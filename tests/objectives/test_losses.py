"""The loss of each objective against the formula, from whole logits in numpy, and its gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain.models.transformer import Transformer
from pretrain.objectives.batch import Batch, gathered
from pretrain.objectives.build import build
from tests.objectives.zoo import CASES, Case, raw

fast = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def opened(case: Case) -> tuple[Transformer, Batch]:
    rows = case.transform()
    arrays = rows(raw(rows.room, 4, others=True))
    model = Transformer(case.model, rngs=nnx.Rngs(0))
    return model, gathered({name: jnp.asarray(a) for name, a in arrays.items()})


def nll(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray, z_loss: float = 0.0) -> float:
    x = np.asarray(logits, np.float64)
    z = np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1)) + x.max(-1)
    label = np.take_along_axis(x, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return float((weights * (z - label + z_loss * z**2)).sum())


def reference(case: Case, model: Transformer, batch: Batch) -> float:
    """The sum of the cross-entropies that the objective asks for."""
    z = case.objective.loss.z_loss
    out = model(batch.inputs)
    hidden = np.asarray(out.hidden_BTD)
    if batch.places is not None:
        hidden = np.stack([h[p] for h, p in zip(hidden, np.asarray(batch.places))])
    targets, weights = np.asarray(batch.targets), np.asarray(batch.weights)
    total = nll(model.logits(jnp.asarray(hidden)), targets, weights, z)
    if case.model.ahead is not None:
        segments = np.asarray(batch.inputs.segments)
        further, _ = model.ahead(out.hidden_BTD, batch.inputs)
        for d, h in enumerate(further, start=1):
            there = weights[:, d:] * (segments[:, d:] == segments[:, :-d])
            part = nll(model.logits(h)[:, :-d], targets[:, d:], there, z)
            total += case.objective.ahead / len(further) * part
    if batch.labels is not None:
        labels = np.asarray(batch.labels)
        logits = model.task("next_sentence", out.hidden_BTD, batch.inputs.segments)
        total += nll(logits, labels, weights.sum(1) * (labels >= 0))
    return total


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_the_formula(name):
    case = CASES[name]
    model, batch = opened(case)
    loss = fast(build(case.objective))(model, batch, None)
    assert float(loss.weight) == float(batch.weights.sum()) > 0
    assert float(loss.total) == pytest.approx(reference(case, model, batch), rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_gets_a_gradient(name):
    case = CASES[name]
    model, batch = opened(case)
    objective = build(case.objective)
    grads = fast(jax.grad(lambda m: objective(m, batch, jax.random.key(0)).total))(model)
    silent = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(grads)
        if not np.isfinite(g).all() or not np.any(g)
    ]
    assert not silent


@pytest.mark.parametrize("name", CASES)
def test_halves_of_a_batch_add_up(name):
    case = CASES[name]
    model, batch = opened(case)
    of = fast(build(case.objective))
    halves = [of(model, jax.tree.map(lambda x, s=s: x[s], batch), None) for s in (slice(0, 2), slice(2, 4))]
    whole = of(model, batch, None)
    summed = jax.tree.map(jnp.add, *halves)
    for a, b in zip(jax.tree.leaves(summed), jax.tree.leaves(whole)):
        assert float(a) == pytest.approx(float(b), rel=1e-5)
