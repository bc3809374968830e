"""Products in 8 bits beside qwix's own, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx
from qwix._src.core import dot_general_qt as qt
from qwix._src.core.stochastic_rounding import get_noise_fn

from pretrain.errors import UserError
from pretrain.sharding import place, quantised
from pretrain.sharding.quantised import TYPES

KEY = jax.random.key(7)


def ours(kind: str, x, w, g, contract: int = 1):
    """(y, dx, dw)."""

    def function(x, w):
        with quantised.products(kind, KEY):
            return place.project(x, w, *(None,) * (x.ndim + w.ndim - 2 * contract), contract=contract)

    y, back = jax.vjp(function, x, w)
    return y, *back(g)


def arrays(x_shape, w_shape, contract: int = 1):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (x_shape, w_shape, (*x_shape[: len(x_shape) - contract], *w_shape[contract:]))
    x, w, g = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes))
    inputs = tuple(range(x.ndim - contract, x.ndim)), tuple(range(contract))
    return *(a * _sign_of_largest(a, axes) for a, axes in zip((x, w), inputs)), g


def _sign_of_largest(a, axes):
    """With it what is largest is positive: of -127.5 steps qwix makes -127 or -128 as the last bit will, we -127."""
    return jnp.where(jnp.max(a, axis=axes, keepdims=True) < -jnp.min(a, axis=axes, keepdims=True), -1, 1)


def assert_near(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("kind", ["int8_forward", "fp8", "fp8_forward"])
def test_a_layer_is_that_of_the_provider_of_qwix(kind):
    forward, backward = TYPES[kind]
    x, w, g = arrays((24, 32), (32, 48))
    layer = nnx.Linear(32, 48, use_bias=False, rngs=nnx.Rngs(0))
    layer.kernel[...] = w
    rule = qwix.QtRule(weight_qtype=forward, act_qtype=forward, bwd_qtype=backward)
    layer = qwix.quantize_model(layer, qwix.QtProvider([rule]), x)
    dlayer, dx = nnx.grad(lambda layer, x: jnp.sum(layer(x) * g), argnums=(0, 1))(layer, x)
    assert_near(ours(kind, x, w, g), (layer(x), dx, dlayer["kernel"][...]))


def test_gradients_are_rounded_as_qwix_rounds_them_with_the_same_noise():
    x, w, g = arrays((24, 32), (32, 48))
    key = quantised.Arithmetic(kind="int8", key=KEY).next_key()
    noise = get_noise_fn("uniform", key)
    config = qt.DotGeneralQtConfig(
        **{f"{side}_qtype": "int8" for side in ("lhs", "rhs", "dlhs_grad", "drhs_grad")},
        dlhs_stochastic_rounding_noise_fn=noise,
        drhs_stochastic_rounding_noise_fn=noise,
    )
    y, back = jax.vjp(lambda x, w: qt.dot_general_qt(x, w, (((1,), (0,)), ((), ())), config), x, w)
    assert_near(ours("int8", x, w, g), (y, *back(g)))


@pytest.mark.parametrize(("x", "w", "contract"), [((2, 3, 4, 6), (4, 6, 5), 2), ((2, 3, 8), (8, 2, 3, 4), 1)])
def test_heads_have_scales_of_their_own(x, w, contract):
    x, w, g = arrays(x, w, contract)
    config = qt.DotGeneralQtConfig(
        lhs_qtype="float8_e4m3fn",
        rhs_qtype="float8_e4m3fn",
        dlhs_grad_qtype="float8_e5m2",
        drhs_grad_qtype="float8_e5m2",
    )
    dims = (tuple(range(x.ndim - contract, x.ndim)), tuple(range(contract))), ((), ())
    y, back = jax.vjp(lambda x, w: qt.dot_general_qt(x, w, dims, config), x, w)
    assert_near(ours("fp8", x, w, g, contract), (y, *back(g)))


@pytest.mark.parametrize(("kind", "bounds"), [("int8", (0.02, 0.02, 0.02)), ("fp8", (0.05, 0.1, 0.1))])
def test_they_are_near_the_products_in_float(kind, bounds):
    x, w, g = arrays((64, 128), (128, 96))
    for found, wanted, bound in zip(ours(kind, x, w, g), (x @ w, g @ w.T, x.T @ g), bounds):
        wrong = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert 1e-4 < wrong < bound


def test_stochastic_rounding_is_right_on_average():
    """Many random roundings of the gradient err together far less than one."""
    x, w, g = arrays((16, 8), (8, 12))
    x = jnp.round(x * 40).at[:, 0].set(127.5)  # whole numbers of a scale of 1, which rounding leaves alone
    rounded = jnp.round(x).at[:, 0].set(127)

    def gradient(key):
        def function(w):
            with quantised.products("int8", key):
                return jnp.sum(place.project(x, w, None, None) * g)

        return jax.grad(function)(w)

    draws = np.asarray(jax.lax.map(gradient, jax.random.split(KEY, 400)))
    most = jnp.max(jnp.abs(g), axis=0)  # 127.5 steps, of which int8 has 127 above 0
    wanted = np.asarray(rounded.T @ jnp.minimum(g, most * 127 / 127.5))
    alone, together = (np.linalg.norm(d - wanted) for d in (draws[0], draws.mean(0)))
    assert 0 < together < alone / 8


def test_a_last_bit_of_the_largest_number_changes_nothing():
    x, w, g = arrays((24, 32), (32, 48))
    y, *_ = ours("int8", -x, w, g)
    near, *_ = ours("int8", -x * (1 + 2e-7 * jnp.sign(w[:, 0])), w, g)
    np.testing.assert_allclose(near, y, rtol=1e-5, atol=1e-5)


def test_outside_training_and_where_a_type_is_asked_for_products_are_exact():
    x, w, _ = arrays((4, 8), (8, 6))
    for key, dtype in ((None, None), (KEY, jnp.float32)):
        with quantised.products("int8", key):
            np.testing.assert_array_equal(place.project(x, w, None, None, dtype=dtype), x @ w)
    with quantised.products("int8", KEY):
        assert np.any(place.project(x, w, None, None) != x @ w)


def products_of(jaxpr) -> list[tuple[str, ...]]:
    """Types of both sides and of the sums."""
    found = []
    for e in jaxpr.eqns:
        if e.primitive.name == "dot_general":
            found.append(tuple(str(v.aval.dtype) for v in (*e.invars, *e.outvars)))
        for inner in e.params.values():
            found += products_of(getattr(inner, "jaxpr", inner)) if hasattr(inner, "jaxpr") else []
    return found


@pytest.mark.parametrize("kind", TYPES)
def test_both_sides_of_every_product_lie_in_8_bits(kind):
    x, w, g = arrays((24, 32), (32, 48))
    forward, backward = TYPES[kind]
    sums, usual = "int32" if "int8" in kind else "float32", ("float32",) * 3
    found = products_of(jax.make_jaxpr(lambda *a: ours(kind, *a))(x, w, g).jaxpr)
    gradients = [(backward, forward, sums), (forward, backward, sums)] if backward else [usual] * 2
    assert found == [(forward, forward, sums), *gradients]


def test_a_missing_library_is_told_in_a_line(monkeypatch):
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"found no qwix, expected it .*; pip install 'pretrain\[quant\]'"):
        ours("int8", *arrays((4, 8), (8, 6)))
