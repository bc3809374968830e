"""The TPU kernel, interpreted, beside the definition of attention."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.models.layers.kernels import Mask, attention
from pretrain.sharding import place
from pretrain.sharding.mesh import Schedule

B, T, K, G, H = 2, 256, 1, 2, 64
SEGMENTS = jnp.asarray(np.stack([np.repeat([1, 2, 0], [100, 120, 36]), np.repeat([1, 2], [17, 239])]), jnp.int32)
CASES = {
    "documents_near_softcap": (Mask(q_segments_BT=SEGMENTS, kv_segments_BS=SEGMENTS, window=50), {"softcap": 5.0}),
    "both_ways": (Mask(q_segments_BT=SEGMENTS, kv_segments_BS=SEGMENTS, causal=False), {}),
    "near_both_ways": (Mask(causal=False, window=70), {}),
    "causal": (Mask(), {}),
}


def arrays(groups: int = G):
    keys = jax.random.split(jax.random.key(0), 4)
    q, o = (jax.random.normal(k, (B, T, K, groups, H)) for k in (keys[0], keys[3]))
    return q, *(jax.random.normal(k, (B, T, K, H)) for k in keys[1:3]), o


@pytest.mark.parametrize("kernels", ["jax", "tokamax"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (i > 1)) for i, n in enumerate(CASES)])
def test_the_kernel_mixes_as_the_definition_does_forward_and_backward(name, kernels, monkeypatch):
    if kernels == "tokamax":
        pytest.importorskip("tokamax")
    monkeypatch.setattr(place, "schedule", lambda: Schedule(kernels=kernels))
    mask, options = CASES[name]
    q, k, v, weights = arrays()

    def total(implementation, q, k, v):
        o = attention(q, k, v, mask=mask, scale=H**-0.5, implementation=implementation, **options)
        return jnp.sum(o * weights), o

    def both(implementation):
        return jax.grad(lambda *a: total(implementation, *a), argnums=(0, 1, 2), has_aux=True)(q, k, v)

    for got, wanted in zip(jax.tree.leaves(both("splash")), jax.tree.leaves(both("reference"))):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize("window", [None, 50])
def test_devices_that_share_a_row_mix_their_parts_of_it(window):
    """As with context parallelism: queries of one part, keys of all."""
    q, k, v, weights = arrays()
    whole = Mask(q_segments_BT=SEGMENTS, kv_segments_BS=SEGMENTS, window=window)

    def total(q, k, v, parts, implementation):
        out = []
        for i, (q_part, segments) in enumerate(zip(jnp.split(q, parts, 1), jnp.split(SEGMENTS, parts, 1))):
            part = jnp.int32(i) if parts > 1 else None
            mask = replace(whole, q_segments_BT=segments, part=part, parts=parts)
            out.append(attention(q_part, k, v, mask=mask, scale=H**-0.5, implementation=implementation))
        return jnp.sum(jnp.concatenate(out, 1) * weights)

    def both(parts, implementation):
        return jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, v, parts, implementation)

    wanted = jax.tree.leaves(both(1, "reference"))
    for parts, implementation in ((2, "splash"), (2, "reference")):
        for got, want in zip(jax.tree.leaves(both(parts, implementation)), wanted):
            np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kernels", ["jax", "tokamax"])
def test_the_kernel_has_sinks(kernels, monkeypatch):
    if kernels == "tokamax":
        pytest.importorskip("tokamax")
    monkeypatch.setattr(place, "schedule", lambda: Schedule(kernels=kernels))
    q, k, v, _ = arrays()
    sinks = jnp.asarray([[0.5, -1.0]])
    got, wanted = (
        attention(q, k, v, mask=Mask(), scale=H**-0.5, sinks_KG=sinks, implementation=i)
        for i in ("splash", "reference")
    )
    np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_a_mask_that_the_kernel_does_not_know_is_refused():
    q, k, v, _ = arrays()
    with pytest.raises(ValueError, match="use the reference"):
        attention(q, k, v, mask=Mask(q_index_T=jnp.arange(T)), scale=1.0, implementation="splash")
    with pytest.raises(ValueError, match="use the reference"):
        attention(q[:, :100], k, v, mask=Mask(), scale=1.0, implementation="splash")
