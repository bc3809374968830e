"""Experts on several devices: tokens go to them and come back, and the step is that of one device."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain.models.init import Init, weight
from pretrain.models.layers.moe import Moe
from pretrain.sharding import expert, place
from pretrain.sharding import mesh as meshes
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import fsdp
from tests.multidevice import dims


@pytest.mark.slow
def test_experts_on_other_devices_give_the_step_of_one_device():
    dims.check("mixtral", MeshConfig(fsdp=2, expert=2, tensor=2))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"expert": 8}, {"expert": 4, "fsdp": 2}, {"expert": 2, "context": 2, "tensor": 2}])
@pytest.mark.parametrize("name", ["mixtral", "deepseek", "odd"])
def test_every_mixture_gives_the_step_of_one_device(name, mesh):
    dims.check(name, replace(MeshConfig(fsdp=1), **mesh))


KINDS, WIDTH, N = 8, 3, 24
"""Of work, of a row, and rows of one device."""


def exchanged(x_n, out_m, begin_c, sizes_c, at_c, come_c, *, axis_name):
    """`jax.lax.ragged_all_to_all` as it is documented, by all reading all; no numbers where windows disagree."""
    me, devices = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    x_Xn = jax.lax.all_gather(x_n, axis_name)
    mine = (jax.lax.all_gather(s, axis_name).reshape(devices, devices, -1)[:, me] for s in (begin_c, sizes_c, at_c))
    begin_c, sizes_c, at_c = (s.reshape(-1) for s in mine)
    row_m1 = jnp.arange(len(out_m))[:, None]
    in_mc = (row_m1 >= at_c) & (row_m1 < at_c + sizes_c)
    c_m = jnp.argmax(in_mc, axis=1)
    come_m = x_Xn[c_m // (len(at_c) // devices), begin_c[c_m] + row_m1[:, 0] - at_c[c_m]]
    taken_m = jnp.any(in_mc, axis=1).reshape(-1, *(1,) * (out_m.ndim - 1))
    wrong = jnp.any(sizes_c != come_c) | jnp.any(in_mc.sum(1) > 1)
    return jnp.where(wrong, jnp.nan, jnp.where(taken_m, come_m, out_m))


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("skew", ["alike", "one kind has all", "two kinds have all", "one device sends nothing there"])
def test_rows_visit_what_works_on_them_however_many_there_are(skew, platform, monkeypatch):
    """Places are not numbers before rows come: none that no row fills is read."""
    monkeypatch.setattr(jax.lax, "empty", lambda shape, dtype, **_: jnp.full(shape, jnp.nan, dtype))
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", exchanged)
    monkeypatch.setattr(place, "platform", lambda: platform)
    rng = np.random.default_rng(0)
    kind = rng.integers(0, KINDS, (4, N))
    if skew == "one kind has all":
        kind[:] = 3
    if skew == "two kinds have all":
        kind = rng.integers(5, 7, (4, N))
    if skew == "one device sends nothing there":
        kind[1] = 0
    kind = jnp.asarray(np.sort(kind, axis=1)).reshape(-1)
    x = jnp.asarray(rng.normal(size=(4 * N, WIDTH)), jnp.float32)
    factor = jnp.asarray(rng.normal(size=4 * N), jnp.float32)
    weigh = jnp.asarray(rng.normal(size=(4 * N, WIDTH)), jnp.float32)
    w = {name: jnp.asarray(rng.normal(size=(KINDS, WIDTH, WIDTH)), jnp.float32) for name in ("in", "out")}

    def into(w, x_cD, factor_c, kind_c, sizes_e):
        assert sizes_e.shape == (KINDS // 4,)
        return {"mlp_up": product(x_cD * jnp.cos(factor_c)[:, None], w["in"][kind_c], sizes_e)}

    def out_of(w, hidden, factor_c, kind_c, sizes_e):
        return product(factor_c[:, None] * jnp.square(hidden["mlp_up"]), w["out"][kind_c], sizes_e)

    def product(x_cI, w_cIO, sizes_e):
        """Reads the rows that there are, also backwards."""
        there_c1 = jnp.arange(len(x_cI))[:, None] < jnp.sum(sizes_e)
        return jnp.where(there_c1, jnp.einsum("cI,cIO->cO", jnp.where(there_c1, x_cI, 0), w_cIO), jnp.nan)

    def alone(w, x, factor):
        h = jnp.square(jnp.einsum("nD,nDF->nF", x * jnp.cos(factor)[:, None], w["in"][kind]))
        y = jnp.einsum("nF,nFD->nD", factor[:, None] * h, w["out"][kind])
        return jnp.sum(y * weigh), y

    def together(w, x, factor, kind, weigh):
        def run(x, factor, kind, *arrays):
            work, weights = expert.Work(into=into, out_of=out_of), dict(zip(w, arrays))
            x_n = x[:, :, None] if platform == "tpu" else x  # rows that travel in another shape than work sees
            return expert.visit(work, weights, x_n, factor, kind, KINDS, N).reshape(x.shape)

        axes = (("batch", None), ("batch",), ("batch",), *(("expert", None, None),) * 2)
        y = place.local(run, axes, ("batch", None))(x, factor, kind, *w.values())
        return jnp.sum(y * weigh), y

    wanted = jax.grad(alone, argnums=(0, 1, 2), has_aux=True)(w, x, factor)
    mesh = MeshConfig(fsdp=1, expert=4)
    built = meshes.build(mesh, jax.devices()[:4])
    with place.use(built, fsdp(), mesh.schedule):
        whole = jax.device_put((w, x, factor, kind, weigh), jax.sharding.NamedSharding(built, jax.P()))
        found = jax.jit(jax.grad(together, argnums=(0, 1, 2), has_aux=True), compiler_options=dims.QUICK)(*whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)


def test_the_gradient_of_a_weight_that_is_collected_where_it_is_used_is_summed_and_cut_at_once():
    mesh = MeshConfig(fsdp=2, expert=2)
    built = meshes.build(mesh, jax.devices()[:4])
    with place.use(built, fsdp(), mesh.schedule):
        axes, used = ("expert", "embed", "mlp"), ("expert", None, "mlp")
        w = jax.device_put(jnp.ones((2, 8, 4)), place.stored((2, 8, 4), axes, built))
        x = jax.device_put(jnp.arange(64.0).reshape(8, 8), jax.sharding.NamedSharding(built, place.spec("batch", None)))

        def step(as_given):
            def use(x, w):
                assert w.shape == (1, 8, 4), "its expert, whole"
                return x @ w[0]

            return lambda w: jnp.sum(place.local(use, (("batch", None), as_given), ("batch", None))(x, w))

        at_rest, whole = (jax.jit(jax.grad(step(given))) for given in (place.AtRest(axes, used), used))
        np.testing.assert_array_equal(at_rest(w), whole(w))
        assert at_rest(w).sharding == w.sharding
        assert "reduce_scatter" in at_rest.lower(w).as_text()
        assert "reduce_scatter" not in whole.lower(w).as_text()


def test_experts_that_were_collected_before_are_not_collected_again():
    """As for generation, where a step would otherwise gather every layer's."""
    config, mesh = dims.ALL["mixtral"], MeshConfig(fsdp=8)
    built = meshes.build(mesh, jax.devices())
    with place.use(built, fsdp(), mesh.schedule):
        layer = nnx.jit(lambda: Moe(config.decoder.pattern[0].mlp, config.d_model, Init.of(config, nnx.Rngs(0))))()
        x = jax.device_put(jnp.ones((8, 4, config.d_model)), jax.NamedSharding(built, place.spec("batch", None, None)))

        def gathers() -> int:
            return jax.jit(lambda layer, x: layer(x, None)[0]).lower(layer, x).as_text().count("stablehlo.all_gather")

        assert gathers() == 3
        for name in ("router", "up", "gate", "down"):
            param = getattr(layer, name)
            param.set_value(weight(param, jnp.float32))
        assert gathers() == 0
