"""One model of each family on every layout: the losses of one device, to the last bits."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pretrain.models import config as c
from pretrain.models import tree
from pretrain.models.transformer import Inputs, Transformer
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import PRESETS

V, D, B, T = 64, 32, 8, 16
LAYOUTS = {
    "dp": ("dp", MeshConfig(data=8, fsdp=1), 8),
    "fsdp": ("fsdp", MeshConfig(fsdp=8), 8),
    "fsdp_tp": ("fsdp_tp", MeshConfig(fsdp=4, tensor=2), 8),
    "2x2x2": ("fsdp_tp", MeshConfig(data=2, fsdp=2, tensor=2), 8),
}
LAYER, RMS = c.NormConfig(kind="layer", bias=True), c.NormConfig()
HEADS = c.AttentionConfig(heads=4, kv_heads=2, head_dim=8)
BOTH_WAYS = replace(HEADS, causal=False, bias=True, out_bias=True)
MLP = c.MlpConfig(d_ff=48)


def decoder(mixer, mlp=MLP, **more) -> c.TransformerConfig:
    block = c.BlockConfig(mixer=mixer, mlp=mlp, pre=RMS)
    stack = c.StackConfig(pattern=(block,), repeats=2, final_norm=RMS)
    return c.TransformerConfig(vocab_size=V, d_model=D, decoder=stack, **more)


def bert() -> c.TransformerConfig:
    block = c.BlockConfig(mixer=BOTH_WAYS, mlp=replace(MLP, gated=False, bias=True, activation="gelu"), residual=LAYER)
    return c.TransformerConfig(
        vocab_size=V,
        d_model=D,
        encoder=c.StackConfig(
            pattern=(block,), repeats=2, positions=c.LearnedPositions(length=T, offset=2), embed_norm=LAYER
        ),
        embed=c.EmbedConfig(types=2, width=16),
        head=c.HeadConfig(tied=True, bias=True, transform=c.TransformConfig()),
        tasks=(c.TaskConfig(name="next", labels=2, hidden="tanh"), c.TaskConfig(name="mean", pool="mean")),
    )


def t5() -> c.TransformerConfig:
    mixer = replace(HEADS, scale=1.0, position=c.RelativeBias(buckets=8, max_distance=12))
    block = c.BlockConfig(mixer=mixer, mlp=replace(MLP, activation="relu", gated=False), pre=RMS)
    crossed = replace(block, cross=replace(mixer, causal=False, position=None))
    seen = replace(block, mixer=replace(mixer, causal=False))
    return c.TransformerConfig(
        vocab_size=V,
        d_model=D,
        encoder=c.StackConfig(pattern=(seen,), repeats=2, final_norm=RMS),
        decoder=c.StackConfig(pattern=(crossed,), repeats=2, final_norm=RMS),
        head=c.HeadConfig(tied=True, scale=D**-0.5),
        init=c.InitConfig(kind="t5", embed_std=1.0),
    )


ROUTER = c.RouterConfig(top_k=2, balance_loss=0.01, z_loss=1e-3)
MIXTURE = c.MoeConfig(experts=8, router=ROUTER, expert=replace(MLP, d_ff=16))
DEEP = replace(
    MIXTURE,
    router=c.RouterConfig(top_k=2, score="sigmoid", groups=4, top_groups=2, balance_rate=1e-3, scale=2.5),
    shared=replace(MLP, d_ff=16),
)
LATENT = c.MlaConfig(heads=4, query_rank=16, kv_rank=16, nope_dim=8, rope_dim=4, value_dim=8)
GPTOSS = replace(
    MIXTURE,
    router=replace(ROUTER, bias=True),
    expert=replace(MLP, d_ff=16, bias=True, activation="gelu_quick", clamp=7.0, up_offset=1.0),
)


LLAMA4 = replace(MIXTURE, router=c.RouterConfig(top_k=1, score="sigmoid", normalise=False, on_input=True))


def odd() -> c.TransformerConfig:
    """A layer for each mechanism that no other family here has."""
    chunked = replace(HEADS, chunk=4, qk_norm=RMS, qk_norm_over="all", growth=c.QueryGrowth(floor=2.0), softcap=9.0)
    mixers = {
        replace(HEADS, sinks=True, window=5, bias=True): GPTOSS,
        chunked: LLAMA4,
        replace(HEADS, position=c.Alibi()): MLP,
    }
    pattern = tuple(c.BlockConfig(mixer=mixer, mlp=mlp, pre=RMS) for mixer, mlp in mixers.items())
    adapters = (c.LoraConfig(pattern="mixer/", dora=True), c.LoraConfig(pattern="mlp/"))
    stack = c.StackConfig(pattern=pattern, repeats=1, final_norm=RMS)
    return c.TransformerConfig(vocab_size=V, d_model=D, decoder=stack, adapters=adapters)


PLACES = replace(MIXTURE, capacity=1.25)
FAMILIES = {
    "bert": bert(),
    "t5": t5(),
    "mixtral": decoder(replace(HEADS, position=c.Rope()), MIXTURE),
    "deepseek": decoder(
        LATENT, DEEP, ahead=c.AheadConfig(depth=1, block=c.BlockConfig(mixer=LATENT, mlp=PLACES, pre=RMS))
    ),
    "odd": odd(),
}


def loss(model: Transformer, inputs: Inputs, targets: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Everything a model can say, in one number."""
    out = model(inputs, key=key)
    logits = model.logits(out.hidden_BTD)
    total = cross_entropy(logits, targets) + sum(out.losses.values())
    for name in model.tasks:
        total += jnp.mean(jnp.square(model.task(name, out.hidden_BTD, inputs.segments)))
    if model.config.ahead:
        (further,), _ = model.ahead(out.hidden_BTD, inputs)
        total += cross_entropy(model.logits(further), targets)
    return total


def cross_entropy(logits_BTV: jax.Array, targets: jax.Array) -> jax.Array:
    hot = targets[..., None] == jnp.arange(V)
    return jnp.mean(jax.nn.logsumexp(logits_BTV, axis=-1) - jnp.sum(jnp.where(hot, logits_BTV, 0), axis=-1))


def batches(steps: int) -> list[tuple]:
    rng, column = np.random.default_rng(0), np.arange(T)[None]
    out = []
    for _ in range(steps):
        cut = rng.integers(4, T - 2, (B, 1))
        second = column >= cut
        segments = np.where(second, 2, 1) * (column < T - 1)
        positions = np.where(second, column - cut, column)
        prefix = (positions < 3).astype(np.int32)
        ids = rng.integers(0, V, (3, B, T))
        arrays = [ids[0], positions, segments, prefix, segments - 1 & 1, ids[1], ids[2]]
        out.append(tuple(np.asarray(a, np.int32) * np.ones((B, T), np.int32) for a in arrays))
    return out


def train(name: str, layout: str | None, steps: int) -> np.ndarray:
    rules, mesh, devices = LAYOUTS[layout] if layout else ("dp", MeshConfig(fsdp=1), 1)
    mesh, config = meshes.build(mesh, jax.devices()[:devices]), FAMILIES[name]
    losses = []
    with place.use(mesh, PRESETS[rules]()):
        rows = jax.sharding.NamedSharding(mesh, place.spec("batch", None))
        layouts = tree.shardings(tree.abstract(config), mesh)
        model = jax.jit(lambda: Transformer(config, rngs=nnx.Rngs(0)), out_shardings=layouts)()
        optimizer = optax.adam(1e-2)
        state = jax.jit(optimizer.init)(model)

        # Unoptimised code compiles several times faster, and a step is tiny.
        @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        def step(model, state, arrays):
            tokens, positions, segments, prefix, types, source, targets = arrays
            inputs = Inputs(tokens=tokens, positions=positions, segments=segments, prefix=prefix, types=types)
            if config.encoder and config.decoder:
                inputs = replace(inputs, encoder=Inputs(tokens=source, positions=positions, segments=segments))
            value, grads = jax.value_and_grad(loss)(model, inputs, targets)
            updates, state = optimizer.update(grads, state, model)
            return jax.tree.map(jnp.add, model, updates), state, value

        for arrays in batches(steps):
            model, state, value = step(model, state, tuple(jax.device_put(a, rows) for a in arrays))
            losses.append(float(value))
    return np.asarray(losses)


def check(name: str, layouts, steps: int) -> None:
    reference = train(name, None, steps)
    assert np.ptp(reference) > 0.01
    for layout in layouts:
        np.testing.assert_allclose(train(name, layout, steps), reference, rtol=1e-5, err_msg=layout)


@pytest.mark.parametrize("name", ["bert", "t5", "mixtral"])
def test_all_axes_at_once_give_the_losses_of_one_device(name):
    check(name, ["2x2x2"], steps=4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_layout_gives_twenty_losses_of_one_device(name):
    check(name, LAYOUTS, steps=20)
