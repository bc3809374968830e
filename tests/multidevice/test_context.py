"""Rows that several devices share: the attention and the losses of rows that one device has."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.models.layers import ring
from pretrain.models.layers.kernels import Mask, reference_attention
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import fsdp_tp
from tests.multidevice import dims

B, T, K, G, H, V = 2, 16, 2, 2, 4, 6
MESH = MeshConfig(fsdp=2, context=4, attention="ring")
QUERY, KEY, ROWS = ("batch", "length", "kv_heads", "groups", None), ("batch", "length", "kv_heads", None), dims.ROWS
KINDS = {
    "causal": {"dealt": True},
    "segments, in order": {"segments": True},
    "segments, a window and a cap": {"dealt": True, "segments": True, "window": 5, "softcap": 3.0},
    "sinks": {"dealt": True, "segments": True, "sinks": True},
    "both ways": {"causal": False, "segments": True},
    "a prefix": {"segments": True, "prefix": True},
}


def arrays(T: int = T, H: int = H, V: int = V) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = {"q": (B, T, K, G, H), "k": (B, T, K, H), "v": (B, T, K, V), "sinks": (K, G), "weigh": (B, T, K, G, V)}
    return {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items())}


def rows(segments=False, prefix=False, T: int = T) -> tuple[jax.Array | None, jax.Array | None]:
    cut, t = jnp.asarray([[5], [11]]) * (T // 16), jnp.arange(T)[None]
    numbers = jnp.where(t < cut, 1, 2) * (t < T - 1)
    return numbers if segments else None, (t % cut < 4).astype(jnp.int32) if prefix else None


def together(x, weigh, mask: Mask, softcap, dealt: bool, implementation="auto"):
    """The ring's answer, weighed, from arrays in the order of the text, and the answer as tokens lie."""
    order = partial(ordered, dealt)

    def attend(q, k, v, segments, prefix, sinks):
        part = Mask(
            q_segments_BT=segments,
            kv_segments_BS=segments,
            kv_prefix_BS=prefix,
            causal=mask.causal,
            window=mask.window,
        )
        options = {"softcap": softcap, "sinks_KG": sinks, "dealt": dealt, "implementation": implementation}
        return ring.ring_attention(q, k, v, mask=part, scale=q.shape[-1] ** -0.5, **options)

    local = place.local(attend, (QUERY, KEY, KEY, ROWS, ROWS, ("kv_heads", "groups")), QUERY)
    q, k, v = (order(x[name]) for name in "qkv")
    o = local(q, k, v, order(mask.q_segments_BT), order(mask.kv_prefix_BS), x.get("sinks"))
    return jnp.sum(o * place.constrain(order(weigh), *QUERY)), o


def ordered(dealt: bool, x):
    if x is None or not dealt:
        return x
    return jax.vmap(ring.zigzag, -1, -1)(x.reshape(*x.shape[:2], -1)).reshape(x.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_that_go_round_give_the_attention_and_gradients_of_the_reference(kind):
    agree(kind, MESH)


@pytest.mark.parametrize("kind", ["segments, a window and a cap", "a prefix"])
def test_queries_meet_them_block_by_block(kind, monkeypatch):
    monkeypatch.setattr(ring, "QUERIES", 2)
    agree(kind, MESH)


@pytest.mark.parametrize("kind", ["sinks", pytest.param("both ways", marks=pytest.mark.slow)])
def test_the_flash_kernel_of_tpus_meets_them_alike(kind, monkeypatch):
    """Interpreted. JAX asks no kernel over which mesh axes its results vary, so it is not asked here, as on a TPU."""
    shard_map = jax.shard_map
    monkeypatch.setattr(jax, "shard_map", lambda f, **given: shard_map(f, **given | {"check_vma": False}))
    agree(kind, MeshConfig(fsdp=1, context=2, attention="ring"), T=512, H=64, V=64, implementation="splash")


def agree(kind: str, mesh: MeshConfig, T: int = T, H: int = H, V: int = V, implementation="auto"):
    options = dict(KINDS[kind])
    segments, prefix = rows(options.get("segments", False), options.get("prefix", False), T)
    mask = Mask(
        q_segments_BT=segments,
        kv_segments_BS=segments,
        kv_prefix_BS=prefix,
        causal=options.get("causal", True),
        window=options.get("window"),
    )
    x, softcap = arrays(T, H, V), options.get("softcap")
    weigh = x.pop("weigh")
    if not options.get("sinks"):
        x.pop("sinks")

    def alone(x):
        o = reference_attention(
            x["q"], x["k"], x["v"], mask=mask, scale=H**-0.5, softcap=softcap, sinks_KG=x.get("sinks")
        )
        return jnp.sum(o * weigh), o

    dealt = options.get("dealt", False)
    wanted, o = jax.jit(jax.grad(alone, has_aux=True))(x)
    built = meshes.build(mesh, jax.devices()[: mesh.fsdp * mesh.context])
    with place.use(built, fsdp_tp(), mesh.schedule):
        whole = jax.device_put((x, weigh, mask), jax.sharding.NamedSharding(built, jax.P()))
        run = jax.grad(lambda *a: together(*a, softcap, dealt, implementation), has_aux=True)
        found = jax.jit(run, compiler_options=dims.QUICK)(*whole)
        wanted = wanted, jax.jit(partial(ordered, dealt))(o)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), found, wanted)


def test_tokens_dealt_in_a_zigzag_come_back_in_order():
    built = meshes.build(MeshConfig(fsdp=1, context=4), jax.devices()[:4])
    with place.use(built, fsdp_tp()):
        x_BT = jnp.arange(2 * 16).reshape(2, 16)
        dealt = jax.jit(ring.zigzag)(x_BT)
        assert dealt[0].tolist() == [0, 1, 14, 15, 2, 3, 12, 13, 4, 5, 10, 11, 6, 7, 8, 9]
        back = jax.jit(lambda x: ring.straight(x[..., None].astype(jnp.float32)))(dealt)
        np.testing.assert_array_equal(back[..., 0], x_BT)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["gather", "ring"])
def test_rows_that_devices_share_give_the_step_of_one_device(attention):
    dims.check("odd", MeshConfig(fsdp=2, context=2, tensor=2, attention=attention))


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["gather", "ring"])
@pytest.mark.parametrize("context", [2, 4, 8])
@pytest.mark.parametrize("name", ["bert", "t5", "mixtral", "deepseek", "odd"])
def test_every_family_gives_the_step_of_one_device(name, context, attention):
    if attention == "ring" and context == 8 and name != "bert":
        pytest.skip("16 tokens are fewer than two chunks of two for eight devices; see mesh_checks")
    dims.check(name, MeshConfig(fsdp=-1, context=context, attention=attention))
