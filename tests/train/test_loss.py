"""The chunked loss against torch, against optax, and against autodiff of the formulas in the papers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pretrain.loss import chunked_cross_entropy

B, T, D, V = 3, 20, 8, 37
TERMS = {
    "plain": {},
    "z-loss": {"z_loss": 1e-2},
    "smoothed": {"label_smoothing": 0.1},
    "soft-capped": {"softcap": 1.5},
    "all": {"z_loss": 1e-2, "label_smoothing": 0.1, "softcap": 1.5},
}
fast = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def linear(params, hidden_BtD):
    return hidden_BtD @ params["kernel_DV"] + params["bias_V"]


def batch(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    params = {"kernel_DV": rng.normal(size=(D, V)), "bias_V": rng.normal(size=V)}
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)
    weights = rng.uniform(size=(B, T)) * (rng.uniform(size=(B, T)) < 0.7)
    targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    return params, jnp.asarray(rng.normal(size=(B, T, D)), dtype), targets, jnp.asarray(weights, jnp.float32)


def whole(params, hidden, targets, weights, z_loss=0.0, label_smoothing=0.0, softcap=None):
    """The same sum from the logits of the whole batch, by the formulas and autodiff."""
    logits = linear(params, hidden)
    logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    q = optax.smooth_labels(jax.nn.one_hot(targets, V), label_smoothing)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return jnp.sum(weights * (optax.softmax_cross_entropy(logits, q) + z_loss * log_z**2))


def close(one, other, tolerance=2e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), one, other)


@pytest.mark.parametrize("chunk", [5, 64, 7])
@pytest.mark.parametrize("name", TERMS)
def test_loss_and_gradients_are_those_of_the_whole_batch(name, chunk):
    params, hidden, targets, weights = batch()

    def chunked(params, hidden):
        return 3.0 * chunked_cross_entropy(linear, params, hidden, targets, weights, chunk=chunk, **TERMS[name])[0]

    def expected(params, hidden):
        return 3.0 * whole(params, hidden, targets, weights, **TERMS[name])

    close(
        fast(jax.value_and_grad(chunked, (0, 1)))(params, hidden),
        fast(jax.value_and_grad(expected, (0, 1)))(params, hidden),
    )


def test_without_a_gradient_the_loss_is_the_same():
    params, hidden, targets, weights = batch()
    terms = TERMS["all"]
    loss = fast(lambda *a: chunked_cross_entropy(linear, *a, chunk=5, **terms)[0])
    close(loss(params, hidden, targets, weights), fast(partial(whole, **terms))(params, hidden, targets, weights))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_torchs(smoothing):
    torch = pytest.importorskip("torch")
    params, hidden, targets, weights = batch()
    theirs = [torch.tensor(np.asarray(x), requires_grad=True) for x in (params["kernel_DV"], params["bias_V"], hidden)]
    logits = (theirs[2] @ theirs[0] + theirs[1]).reshape(-1, V)
    labels = torch.tensor(np.asarray(targets)).reshape(-1).long()
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    loss = (each * torch.tensor(np.asarray(weights)).reshape(-1)).sum()
    loss.backward()

    def ours(params, hidden):
        return chunked_cross_entropy(linear, params, hidden, targets, weights, chunk=7, label_smoothing=smoothing)[0]

    value, (dparams, dhidden) = fast(jax.value_and_grad(ours, (0, 1)))(params, hidden)
    close(value, loss.item())
    close([dparams["kernel_DV"], dparams["bias_V"], dhidden], [x.grad.numpy() for x in theirs])


def test_metrics_are_sums_over_the_tokens_that_count():
    params, hidden, targets, weights = batch()
    terms = {"z_loss": 1e-2, "label_smoothing": 0.1}
    loss, weight, metrics = chunked_cross_entropy(linear, params, hidden, targets, weights, chunk=7, **terms)
    logits = linear(params, hidden)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    close(weight, weights.sum())
    close(metrics["nll"], whole(params, hidden, targets, weights))
    close(metrics["z_loss"], 1e-2 * jnp.sum(weights * log_z**2))
    close(metrics["correct"], jnp.sum(weights * (logits.argmax(-1) == targets)))
    close(loss, whole(params, hidden, targets, weights, **terms))


def test_tokens_without_weight_pass_no_gradient():
    params, hidden, targets, weights = batch()
    gradient = jax.grad(lambda h: chunked_cross_entropy(linear, params, h, targets, weights, chunk=7)[0])(hidden)
    assert (gradient[weights == 0] == 0).all()
    assert (gradient[weights > 0] != 0).any(-1).all()


def test_two_halves_of_a_batch_add_up_to_the_whole():
    params, hidden, targets, weights = batch()

    @fast
    def of(hidden, targets, weights):
        return chunked_cross_entropy(linear, params, hidden, targets, weights, chunk=5)

    one, rest = of(hidden[:1], targets[:1], weights[:1]), of(hidden[1:], targets[1:], weights[1:])
    close(jax.tree.map(jnp.add, one, rest), of(hidden, targets, weights))


def test_gradients_of_bfloat16_parameters_add_up_in_float32():
    """Twenty chunks give what one does, up to the one rounding at the end."""
    params, hidden, targets, weights = batch(jnp.bfloat16)

    def gradient(chunk):
        def loss(params):
            return chunked_cross_entropy(linear, params, hidden, targets, weights, chunk=chunk)[0]

        return fast(jax.grad(loss))(params)["kernel_DV"]

    many, one = gradient(1), gradient(T)
    assert many.dtype == jnp.bfloat16
    close(many.astype(jnp.float32), one.astype(jnp.float32), 0.01 * float(jnp.abs(one).max()))


def shapes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (tuple(v.aval.shape) for v in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from shapes(inner)


def test_logits_never_exist_whole():
    b, t, d, v, chunk = 3, 64, 8, 1001, 16
    params = {"kernel_DV": jnp.zeros((d, v)), "bias_V": jnp.zeros(v)}
    hidden, targets, weights = jnp.zeros((b, t, d)), jnp.zeros((b, t), jnp.int32), jnp.ones((b, t))

    def step(params, hidden):
        return jax.value_and_grad(
            lambda *a: chunked_cross_entropy(linear, *a, targets, weights, chunk=chunk)[0], (0, 1)
        )(params, hidden)

    with_vocab = [s for s in shapes(jax.make_jaxpr(step)(params, hidden).jaxpr) if v in s]
    assert (b, chunk, v) in with_vocab
    assert max(np.prod(s) for s in with_vocab) <= b * chunk * v


def test_batch_and_vocabulary_may_be_sharded():
    """Traced under an explicit mesh without devices: a layout that does not add up raises here."""
    mesh = AbstractMesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2)

    def array(shape, dtype, *spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))

    hidden, kernel = array((4, 20, D), jnp.float32, "data"), array((D, 40), jnp.float32, None, "tensor")
    targets, weights = array((4, 20), jnp.int32, "data"), array((4, 20), jnp.float32, "data")

    def head(kernel_DV, hidden_BtD):
        return jnp.einsum("btd,dv->btv", hidden_BtD, kernel_DV, out_sharding=P("data", None, "tensor"))

    def step(kernel, hidden, targets, weights):
        def loss(*a):
            return chunked_cross_entropy(head, *a, targets, weights, chunk=7, z_loss=1e-4)[0]

        return jax.value_and_grad(loss, (0, 1))(kernel, hidden)

    with jax.sharding.use_abstract_mesh(mesh):
        loss, (dkernel, dhidden) = jax.eval_shape(step, kernel, hidden, targets, weights)
    assert loss.sharding.spec == P()
    assert dkernel.sharding.spec == kernel.sharding.spec
    assert dhidden.sharding.spec == P("data", None, None)
