"""The loss of each objective against the formula, from whole logits in numpy, and its gradients."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain.data.pipeline import Pipeline
from pretrain.models import config as m
from pretrain.models.transformer import Transformer
from pretrain.objectives.batch import Batch, gathered
from pretrain.objectives.build import build
from pretrain.objectives.replaced import generate, sample
from pretrain.objectives.transforms import transform
from tests.objectives.zoo import CASES, TOKENIZER, Case, decoder, raw

fast = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def opened(split) -> Callable[[str], tuple[Transformer, Batch]]:
    @cache
    def of(name: str) -> tuple[Transformer, Batch]:
        case = CASES[name]
        arrays = Pipeline(split, case.transform(), batch=4).rows(0)
        model = fast(lambda: Transformer(case.model, rngs=nnx.Rngs(0)))()
        return model, gathered({name: jnp.asarray(a) for name, a in arrays.items()})

    return of


def nll(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray, z_loss: float = 0.0) -> float:
    x = np.asarray(logits, np.float64)
    z = np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1)) + x.max(-1)
    label = np.take_along_axis(x, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return float((weights * (z - label + z_loss * z**2)).sum())


@fast
def said(model: Transformer, batch: Batch) -> dict:
    """Everything that the model says of the batch, in whole logits."""
    out = model(batch.inputs)
    hidden = out.hidden_BTD
    if batch.places is not None:
        hidden = jax.vmap(lambda h, p: h[p])(hidden, batch.places)
    further = () if model.config.ahead is None else model.ahead(out.hidden_BTD, batch.inputs)[0]
    return {
        "logits": model.logits(hidden),
        "further": [model.logits(h) for h in further],
        "label": model.task("next_sentence", out.hidden_BTD, batch.inputs.segments) if model.config.tasks else None,
    }


def reference(case: Case, model: Transformer, batch: Batch) -> float:
    """The sum of the cross-entropies that the objective asks for."""
    if case.model.generator is not None:
        return replaced(case, model, batch)
    z, answers = case.objective.loss.z_loss, said(model, batch)
    targets, weights = np.asarray(batch.targets), np.asarray(batch.weights)
    total = nll(answers["logits"], targets, weights, z)
    for d, logits in enumerate(answers["further"], start=1):
        segments = np.asarray(batch.inputs.segments)
        there = weights[:, d:] * (segments[:, d:] == segments[:, :-d])
        total += case.objective.ahead / len(answers["further"]) * nll(logits[:, :-d], targets[:, d:], there, z)
    if batch.labels is not None:
        labels = np.asarray(batch.labels)
        total += nll(answers["label"], labels, weights.sum(1) * (labels >= 0))
    return total


def replaced(case: Case, model: Transformer, batch: Batch) -> float:
    """Of the generator's words, and of the judgement about each token of what it made."""

    @fast
    def outputs(model, batch):
        hidden, unembed = model.generated(batch.inputs)
        _, tokens, _ = generate(case.objective, model, batch, None)
        judged = model(replace(batch.inputs, tokens=tokens)).hidden_BTD
        logits = jax.vmap(lambda h, p: h[p])(unembed(hidden), batch.places)
        return logits, tokens, model.task("replaced", judged, batch.inputs.segments)[..., 0]

    logits, tokens, judgement = map(np.asarray, outputs(model, batch))
    text, targets, weights = (np.array(a) for a in (batch.inputs.tokens, batch.targets, batch.weights))
    b, k = np.nonzero(weights)
    text[b, np.asarray(batch.places)[b, k]] = targets[b, k]
    same = np.ones(text.shape, bool)
    same[b, np.asarray(batch.places)[b, k]] = False
    assert (tokens[same] == text[same]).all()
    there = np.asarray(batch.inputs.segments) > 0
    each = np.where(tokens != text, np.log1p(np.exp(-judgement)), np.log1p(np.exp(judgement)))
    means = (each * there).sum(1) / there.sum(1)
    return nll(logits, targets, weights, case.objective.loss.z_loss) + 50 * (weights.sum(1) * means).sum()


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_the_formula(name, opened):
    case = CASES[name]
    model, batch = opened(name)
    loss = fast(build(case.objective))(model, batch, None)
    assert float(loss.weight) == float(batch.weights.sum()) > 0
    assert float(loss.total) == pytest.approx(reference(case, model, batch), rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_gets_a_gradient(name, opened):
    case = CASES[name]
    model, batch = opened(name)
    objective = build(case.objective)
    grads = fast(jax.grad(lambda m: objective(m, batch, jax.random.key(0)).total))(model)
    silent = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(grads)
        if not np.isfinite(g).all() or not np.any(g)
    ]
    assert not silent


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"replaced"}))  # which draws for a row by its place
def test_halves_of_a_batch_add_up(name, opened):
    case = CASES[name]
    model, batch = opened(name)
    of = fast(build(case.objective))
    halves = [of(model, jax.tree.map(lambda x, s=s: x[s], batch), None) for s in (slice(0, 2), slice(2, 4))]
    whole = of(model, batch, None)
    summed = jax.tree.map(jnp.add, *halves)
    for a, b in zip(jax.tree.leaves(summed), jax.tree.leaves(whole)):
        assert float(a) == pytest.approx(float(b), rel=1e-5)


def test_the_generator_says_each_word_as_often_as_it_thinks():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    drawn = fast(lambda: sample(lambda h: h + logits, jnp.zeros((40, 101, 1)), jax.random.key(1), 16))()
    assert drawn.shape == (40, 101)
    shares = np.bincount(np.asarray(drawn).ravel(), minlength=4) / drawn.size
    assert abs(shares - np.exp(logits)).max() < 0.02
    assert len({tuple(row) for row in np.asarray(drawn[:, :16]).tolist()}) == 40


def test_the_judgement_does_not_reach_the_generator(opened):
    case = CASES["replaced"]
    model, batch = opened("replaced")

    def grads(weight: float):
        objective = build(replace(case.objective, weight=weight))
        return fast(jax.grad(lambda m: objective(m, batch, jax.random.key(0)).total))(model)

    one, other = grads(1.0), grads(2.0)
    for a, b in zip(jax.tree.leaves(one.generator), jax.tree.leaves(other.generator)):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert any(not np.allclose(a, b) for a, b in zip(jax.tree.leaves(one.encoder), jax.tree.leaves(other.encoder)))


def test_losses_of_the_layers_join_and_are_reported():
    router = m.RouterConfig(top_k=1, balance_loss=0.3, z_loss=0.2, balance_rate=0.1)
    experts = m.MoeConfig(experts=4, router=router, expert=m.MlpConfig(d_ff=8))
    block = replace(decoder().decoder.pattern[0], mlp=experts)
    config = replace(decoder(), decoder=replace(decoder().decoder, pattern=(block,)))
    model = fast(lambda: Transformer(config, rngs=nnx.Rngs(0)))()
    rows = transform(CASES["next"].objective, TOKENIZER, 16, config)
    batch = gathered({name: jnp.asarray(a) for name, a in rows(raw(16, 2)).items()})
    loss, plain = fast(build(CASES["next"].objective))(model, batch, None), said(model, batch)
    own = fast(lambda: model(batch.inputs).losses)()
    shown = {name for name in own if not name.startswith("_")}
    expected = nll(plain["logits"], np.asarray(batch.targets), np.asarray(batch.weights), 1e-3)
    assert len(shown) == 2
    assert len(own) > 2
    assert float(loss.total) == pytest.approx(expected + float(loss.weight * sum(own.values())), rel=1e-5)
    assert shown == set(loss.metrics) - {"nll", "z_loss", "correct"}
    for name in shown:
        assert float(loss.metrics[name]) == pytest.approx(float(own[name] * loss.weight), rel=1e-5)
