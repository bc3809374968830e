"""Experts on several devices: tokens go to them and come back, and the step is that of one device."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.parametrize("skew", ["alike", "one kind has all", "two kinds have all", "one device sends nothing there"])
def test_rows_visit_what_works_on_them_however_many_there_are(skew, monkeypatch):
    """Places are not numbers before rows come: none that no row fills is read."""
    monkeypatch.setattr(jax.lax, "empty", lambda shape, dtype, **_: jnp.full(shape, jnp.nan, dtype))
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
    weigh = jnp.asarray(rng.normal(size=(4 * N, WIDTH)), jnp.float32)
    w = {name: jnp.asarray(rng.normal(size=(KINDS, WIDTH, WIDTH)), jnp.float32) for name in ("in", "out")}

    def into(w, x_cD, kind_c, sizes_e):
        assert sizes_e.shape == (KINDS // 4,)
        return {"mlp_up": product(x_cD, w["in"][kind_c], sizes_e)}

    def out_of(w, hidden, kind_c, sizes_e):
        return product(jnp.square(hidden["mlp_up"]), w["out"][kind_c], sizes_e)

    def product(x_cI, w_cIO, sizes_e):
        """Reads the rows that there are, also backwards."""
        there_c1 = jnp.arange(len(x_cI))[:, None] < jnp.sum(sizes_e)
        return jnp.where(there_c1, jnp.einsum("cI,cIO->cO", jnp.where(there_c1, x_cI, 0), w_cIO), jnp.nan)

    def alone(w, x):
        y = jnp.einsum("nF,nFD->nD", jnp.square(jnp.einsum("nD,nDF->nF", x, w["in"][kind])), w["out"][kind])
        return jnp.sum(y * weigh), y

    def together(w, x, kind, weigh):
        def run(x, kind, *arrays):
            weights = dict(zip(w, arrays))
            return expert.visit(expert.Work(into=into, out_of=out_of), weights, x, kind, KINDS, N)

        of_kinds = ("expert", None, None)
        y = place.local(run, (("batch", None), ("batch",), of_kinds, of_kinds), ("batch", None))(x, kind, *w.values())
        return jnp.sum(y * weigh), y

    wanted = jax.grad(alone, argnums=(0, 1), has_aux=True)(w, x)
    mesh = MeshConfig(fsdp=1, expert=4)
    built = meshes.build(mesh, jax.devices()[:4])
    with place.use(built, fsdp(), mesh.schedule):
        whole = jax.device_put((w, x, kind, weigh), jax.sharding.NamedSharding(built, jax.P()))
        found = jax.jit(jax.grad(together, argnums=(0, 1), has_aux=True), compiler_options=dims.QUICK)(*whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)
