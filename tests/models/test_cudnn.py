"""What cuDNN is asked to do, beside the definition of attention: JAX computes the same call with XLA."""

from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.models.layers import cudnn, kernels
from pretrain.models.layers.kernels import Mask, attention
from tests.models.test_kernels import masks

B, T, K, G, H = 2, 48, 2, 3, 16
PACKED = jnp.asarray(np.stack([np.repeat([1, 2, 0], [20, 24, 4]), np.repeat([0, 3, 4], [5, 17, 26])]), jnp.int32)
BOTH = {"q_segments_BT": PACKED, "kv_segments_BS": PACKED}
MASKS = {
    **masks(PACKED),
    "packed prefix": Mask(**BOTH, kv_prefix_BS=jnp.arange(T)[None] % 24 < jnp.asarray([[9], [3]])),
    "queries further on": Mask(q_index_T=jnp.arange(T) + 5, window=20),
    "a ring of slots": Mask(kv_index_S=jnp.roll(jnp.arange(T), 11), window=20),
}
TOLD = ("causal", "bidirectional", "window", "window of one")


def arrays(keys=T, kv_heads=K, groups=G, dtype=jnp.float16):
    seeds = jax.random.split(jax.random.key(0), 4)
    shapes = (B, T, kv_heads, groups, H), (B, keys, kv_heads, H), (B, keys, kv_heads, H), (B, T, kv_heads, groups, H)
    return [jax.random.normal(seed, shape).astype(dtype) for seed, shape in zip(seeds, shapes)]


def beside_the_reference(mask, *inputs):
    """Output and gradients: no further than 10 bits round."""

    @partial(jax.jit, static_argnums=0)
    def both(implementation, q, k, v, do):
        o, vjp = jax.vjp(lambda *a: attention(*a, mask=mask, scale=0.3, implementation=implementation), q, k, v)
        return o, *vjp(do)

    exact = [x.astype(jnp.float32) for x in inputs]
    for got, wanted in zip(both("cudnn", *inputs), both("reference", *exact)):
        assert got.dtype == jnp.float16
        np.testing.assert_allclose(got.astype(jnp.float32), wanted, atol=1e-3 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize("name", MASKS)
def test_the_call_says_the_mask_forward_and_backward(name):
    beside_the_reference(MASKS[name], *arrays())


@pytest.mark.parametrize(("kv_heads", "groups"), [(1, 6), (6, 1)])
def test_it_holds_for_multi_query_and_multi_head_attention(kv_heads, groups):
    beside_the_reference(MASKS["packed"], *arrays(kv_heads=kv_heads, groups=groups))


def test_it_holds_for_keys_of_another_length_and_queries_that_have_none():
    segments = jnp.where(PACKED[:, ::2] == 2, 0, PACKED[:, ::2])
    beside_the_reference(Mask(q_segments_BT=PACKED, kv_segments_BS=segments, causal=False), *arrays(keys=T // 2))


def test_gpus_take_it_where_it_fits():
    def chosen(mask=MASKS["causal"], dtype=jnp.bfloat16, width=128, values=128, length=T, plain=True, bare=True):
        q = jax.ShapeDtypeStruct((B, length, K, G, width), dtype)
        k, v = (jax.ShapeDtypeStruct((B, length, K, n), dtype) for n in (width, values))
        return kernels._fastest("gpu", mask, q, k, v, plain, plain and width == values, bare and width == values)

    assert all(chosen(mask) == "cudnn" for mask in MASKS.values())
    assert chosen(dtype=jnp.float16, width=64, values=64) == "cudnn"
    assert chosen(MASKS["causal"], length=T + 1) == chosen(MASKS["window"], length=T + 1) == "cudnn"
    odd = {"mask": MASKS["window both ways"], "length": T + 1}
    for asked in ({"dtype": jnp.float32}, {"width": 100, "values": 100}, {"values": 64}, {"bare": False}, odd):
        assert chosen(**asked) == "reference", asked
    assert chosen(width=256, values=256) == "reference"  # this process has no GPU that knows as many


def test_what_it_cannot_do_is_refused():
    q, k, v, _ = arrays()
    call = partial(attention, scale=1.0, implementation="cudnn")
    for options in ({"softcap": 5.0}, {"sinks_KG": jnp.zeros((K, G))}, {"bias_KGTS": jnp.zeros((K, G, T, T))}):
        with pytest.raises(ValueError, match="cuDNN's attention has none: use the reference"):
            call(q, k, v, mask=Mask(), **options)
    for wrong in ((q.astype(jnp.float32), k, v), (q, k, v[..., :8]), (q[..., :12], k[..., :12], v[..., :12])):
        with pytest.raises(ValueError, match="cuDNN takes bfloat16 or float16"):
            call(*wrong, mask=Mask())


@pytest.mark.skipif(find_spec("jax_cuda13_plugin") is None, reason="needs pretrain[cuda]")
@pytest.mark.parametrize("name", MASKS)
def test_a_gpu_program_calls_cudnn_and_a_policy_that_saves_attention_spares_its_forward_pass(name):
    def calls(*saved):
        policy = jax.checkpoint_policies.save_only_these_names(*saved)

        @partial(jax.checkpoint, policy=policy, prevent_cse=False)
        def total(q, k, v):
            return jnp.sin(cudnn.cudnn_attention(q, k, v, mask=MASKS[name], scale=0.3)).sum()

        traced = jax.jit(jax.value_and_grad(total, (0, 1, 2))).trace(*arrays(dtype=jnp.bfloat16)[:3])
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        kind = "__cudnn$fmhaSoftmax" if name in TOLD else "__cudnn$fmhaScaleBiasSoftmax"
        return text.count(f"@{kind}("), text.count(f"@{kind}Backward("), text.count("dot_general")

    assert calls() == (2, 1, 0)
    assert calls("attention") == (1, 1, 0)
