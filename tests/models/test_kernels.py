"""Attention kernels against the definition, written out in numpy; it judges the reference, which judges the rest."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.models.layers.blockwise import blockwise_attention
from pretrain.models.layers.kernels import Mask, attention, reference_attention

PACKED = jnp.asarray([[1] * 20 + [2] * 15 + [0] * 2, [0] * 5 + [3] * 32], jnp.int32)


def masks(segments: jax.Array) -> dict[str, Mask]:
    both = {"q_segments_BT": segments, "kv_segments_BS": segments}
    return {
        "causal": Mask(),
        "bidirectional": Mask(causal=False),
        "window": Mask(window=7),
        "window of one": Mask(window=1),
        "window both ways": Mask(causal=False, window=7),
        "packed": Mask(**both),
        "packed window": Mask(**both, window=9),
        "packed bidirectional": Mask(**both, causal=False),
    }


MASKS = masks(PACKED)

fast = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiles three times as fast."""


def arrays(T=37, S=37, K=2, G=3, H=8, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (2, T, K, G, H), (2, S, K, H), (2, S, K, H), (2, T, K, G, H)
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes)]


def with_gradients(kernel, q, k, v, do, **options):
    """(o, dq, dk, dv)"""

    @fast
    def run(q, k, v, do):
        o, vjp = jax.vjp(lambda q, k, v: kernel(q, k, v, scale=0.3, **options), q, k, v)
        return o, *vjp(do)

    return run(q, k, v, do)


def by_hand(q, k, v, mask, scale, softcap):
    """One query at a time, in numpy's f64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    segments = None if mask.q_segments_BT is None else np.asarray(mask.q_segments_BT)
    o = np.zeros(q.shape)
    for b, t, h, g in np.ndindex(q.shape[:4]):
        seen = []
        for j in range(k.shape[1]):
            same = segments is None or segments[b, t] == segments[b, j] != 0
            near = mask.window is None or abs(t - j) < mask.window
            seen += [j] if same and near and (j <= t or not mask.causal) else []
        if seen:
            x = k[b, seen, h] @ q[b, t, h, g] * scale
            x = x if softcap is None else softcap * np.tanh(x / softcap)
            p = np.exp(x - x.max())
            o[b, t, h, g] = p / p.sum() @ v[b, seen, h]
    return o


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("name", MASKS)
def test_the_reference_is_the_definition(name, softcap):
    q, k, v, _ = arrays()
    o = fast(partial(reference_attention, mask=MASKS[name], scale=0.3, softcap=softcap))(q, k, v)
    np.testing.assert_allclose(o, by_hand(q, k, v, MASKS[name], 0.3, softcap), atol=2e-6)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("name", MASKS)
def test_blocks_give_the_output_and_gradients_of_the_reference(name, softcap):
    options = dict(mask=MASKS[name], softcap=softcap)
    expected = with_gradients(reference_attention, *arrays(), **options)
    got = with_gradients(blockwise_attention, *arrays(), **options, queries=16)
    for one, other in zip(got, expected):
        np.testing.assert_allclose(one, other, atol=5e-6)


@pytest.mark.parametrize("queries", [10, 37, 64])
def test_the_size_of_the_blocks_changes_nothing(queries):
    mask = MASKS["packed window"]
    expected = with_gradients(blockwise_attention, *arrays(), mask=mask, queries=16)
    for one, other in zip(with_gradients(blockwise_attention, *arrays(), mask=mask, queries=queries), expected):
        np.testing.assert_allclose(one, other, atol=5e-6)


@pytest.mark.parametrize(("K", "G"), [(1, 6), (6, 1)])
def test_blocks_hold_for_multi_query_and_multi_head_attention(K, G):
    expected = with_gradients(reference_attention, *arrays(K=K, G=G), mask=Mask())
    for one, other in zip(with_gradients(blockwise_attention, *arrays(K=K, G=G), mask=Mask(), queries=16), expected):
        np.testing.assert_allclose(one, other, atol=5e-6)


def test_blocks_hold_for_keys_of_another_length():
    """As in attention to an encoder's output."""
    packed = Mask(q_segments_BT=PACKED, kv_segments_BS=PACKED[:, ::2], causal=False)
    for mask in (Mask(causal=False), packed):
        expected = with_gradients(reference_attention, *arrays(S=19), mask=mask)
        for one, other in zip(with_gradients(blockwise_attention, *arrays(S=19), mask=mask, queries=16), expected):
            np.testing.assert_allclose(one, other, atol=5e-6)


def test_blocks_hold_in_bfloat16():
    """As far from the truth as the reference in bf16 is: both round weights and outputs to 8 bits."""
    truth = with_gradients(reference_attention, *arrays(), mask=MASKS["packed"])
    low = arrays(dtype=jnp.bfloat16)
    for one, other in zip(with_gradients(blockwise_attention, *low, mask=MASKS["packed"], queries=16), truth):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=0.02 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("kernel", [reference_attention, blockwise_attention])
def test_rows_that_see_nothing_give_zeros_and_pass_no_gradient(kernel):
    q, k, v, do = arrays()
    o, dq, dk, dv = with_gradients(kernel, q, k, v, do, mask=MASKS["packed"])
    padding = PACKED == 0
    for x in (o, dq, dk, dv):
        assert jnp.isfinite(x).all()
        assert (x[padding] == 0).all()
    nothing = jnp.zeros_like(PACKED)
    empty = with_gradients(kernel, q, k, v, do, mask=Mask(q_segments_BT=nothing, kv_segments_BS=nothing))
    assert all((x == 0).all() for x in empty)


@pytest.mark.parametrize("kernel", [reference_attention, blockwise_attention])
def test_large_logits_stay_finite(kernel):
    q, k, v, do = arrays()
    for x in with_gradients(kernel, 1e4 * q, 1e4 * k, v, do, mask=MASKS["packed"]):
        assert jnp.isfinite(x).all()


def test_a_row_can_be_continued_token_by_token():
    """Decoding: a query at slot i of a cache whose later slots are still empty."""
    q, k, v, _ = arrays()
    for window in (None, 7):
        whole = reference_attention(q, k, v, mask=Mask(window=window), scale=0.3)
        for i in (0, 11, 36):
            mask = Mask(q_index_T=jnp.arange(i, i + 1), window=window)
            o = attention(q[:, i : i + 1], k.at[:, i + 1 :].set(9.0), v, mask=mask, scale=0.3)
            np.testing.assert_allclose(o, whole[:, i : i + 1], atol=1e-6)


def test_slots_may_hold_any_indices():
    """A ring buffer: keys out of order, told apart by their index."""
    q, k, v, _ = arrays()
    order = jnp.asarray(np.random.default_rng(0).permutation(37))
    whole = reference_attention(q, k, v, mask=Mask(window=7), scale=0.3)
    o = attention(q, k[:, order], v[:, order], mask=Mask(kv_index_S=order, window=7), scale=0.3)
    np.testing.assert_allclose(o, whole, atol=1e-6)


def products(mask, T=256):
    q, k, v, _ = jax.eval_shape(lambda: arrays(T=T, S=T, K=1, G=1))
    jaxpr = jax.make_jaxpr(lambda *a: blockwise_attention(*a, mask=mask, scale=1.0, queries=16))(q, k, v)
    text = str(jaxpr)
    return text.count("dot_general"), text


def test_no_block_computes_what_causality_or_a_window_rule_out():
    _, causal = products(Mask())
    assert "2,1,16,256" in causal and "2,1,256,256" not in causal  # noqa: PT018
    _, windowed = products(Mask(window=16))
    assert "2,1,16,31" in windowed and "2,1,16,32" not in windowed  # noqa: PT018


def test_a_long_row_makes_few_blocks():
    assert products(Mask(), T=4096)[0] == 2 * 16


def test_a_policy_that_saves_attention_spares_its_forward_pass():
    q, k, v, _ = arrays()
    save = jax.checkpoint_policies.save_only_these_names("attention")

    def exponentials(policy):
        mix = jax.checkpoint(
            lambda *a: attention(*a, mask=Mask(), scale=1.0, implementation="blockwise"), policy=policy
        )
        return str(jax.make_jaxpr(jax.grad(lambda *a: mix(*a).sum(), (0, 1, 2)))(q, k, v)).count(" = exp ")

    assert exponentials(save) < exponentials(jax.checkpoint_policies.nothing_saveable)


def test_masks_that_cannot_be_are_refused():
    q, k, v, _ = arrays()
    with pytest.raises(ValueError, match="both or none"):
        attention(q, k, v, mask=Mask(q_segments_BT=PACKED), scale=1.0)
    with pytest.raises(ValueError, match="use the reference"):
        attention(q, k, v, mask=Mask(q_index_T=jnp.arange(37)), scale=1.0, implementation="blockwise")
