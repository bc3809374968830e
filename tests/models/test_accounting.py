import inspect
import math
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from pretrain.configs import gpt2, gpt3, llama, smollm
from pretrain.models import accounting, tree
from pretrain.models.config import (
    AheadConfig,
    AttentionConfig,
    BlockConfig,
    EmbedConfig,
    GeneratorConfig,
    HeadConfig,
    LearnedPositions,
    MlaConfig,
    MlpConfig,
    MoeConfig,
    NormConfig,
    RelativeBias,
    Remat,
    Rope,
    RouterConfig,
    StackConfig,
    TaskConfig,
    TransformConfig,
    TransformerConfig,
)
from pretrain.models.layers import kernels
from pretrain.models.transformer import Inputs, Transformer

PUBLISHED = {
    "llama.llama2_7b": 6738415616,
    "llama.llama2_13b": 13015864320,
    "llama.llama2_70b": 68976648192,
    "llama.llama3_8b": 8030261248,
    "smollm.smollm2_135m": 134515008,
    "gpt2.small": 124439808,
    "gpt2.medium": 354823168,
    "gpt2.large": 774030080,
    "gpt2.xl": 1557611200,
}
PRESETS = {
    f"{module.__name__.rsplit('.', 1)[1]}.{name}": make
    for module in (gpt2, gpt3, llama, smollm)
    for name, make in inspect.getmembers(module, inspect.isfunction)
    if make.__module__ == module.__name__ and not inspect.signature(make).parameters
}

LAYER, RMS = NormConfig(kind="layer", bias=True), NormConfig(kind="rms")
ATTENTION = AttentionConfig(heads=6, kv_heads=2, head_dim=10, position=Rope())
BLOCK = BlockConfig(mixer=ATTENTION, mlp=MlpConfig(d_ff=52), pre=RMS)


def transformer(**changes) -> TransformerConfig:
    stack = StackConfig(pattern=(BLOCK,), repeats=3, final_norm=RMS)
    return TransformerConfig(**{"vocab_size": 97, "d_model": 36, "decoder": stack, **changes})


def decoder(*blocks: BlockConfig, **changes) -> TransformerConfig:
    return transformer(decoder=StackConfig(**{"pattern": blocks, "repeats": 2, **changes}))


EXPERT = MlpConfig(d_ff=14)
MIXTURE = MoeConfig(experts=6, router=RouterConfig(top_k=2), expert=EXPERT, shared=MlpConfig(d_ff=10))
BIASED_MIXTURE = replace(
    MIXTURE, router=RouterConfig(top_k=3, bias=True, balance_rate=0.1), expert=replace(EXPERT, bias=True)
)
LATENT = MlaConfig(heads=3, query_rank=8, kv_rank=10, nope_dim=6, rope_dim=4, value_dim=5)
POOLED = TaskConfig(name="b", pool="mean")
BIASED = replace(ATTENTION, bias=True, out_bias=True)
CROSS = replace(BLOCK, cross=replace(ATTENTION, heads=4, kv_heads=4, causal=False, window=None, position=None))
ENCODER = StackConfig(pattern=(replace(BLOCK, mixer=replace(ATTENTION, causal=False)),), repeats=2, embed_norm=LAYER)
ODD = {
    "a prefix, a suffix and two kinds of layers": decoder(
        BLOCK, replace(BLOCK, mlp=None), prefix=(replace(BLOCK, pre=LAYER),), suffix=(BLOCK, BLOCK), final_norm=LAYER
    ),
    "biases everywhere": decoder(replace(BLOCK, mixer=BIASED, mlp=MlpConfig(d_ff=20, bias=True))),
    "biases without a gate": decoder(replace(BLOCK, mixer=BIASED, mlp=MlpConfig(d_ff=20, bias=True, gated=False))),
    "norms of query and key": decoder(replace(BLOCK, mixer=replace(ATTENTION, qk_norm=LAYER))),
    "every norm slot": decoder(replace(BLOCK, pre=RMS, branch=LAYER, residual=RMS)),
    "parallel branches": decoder(replace(BLOCK, parallel="one_norm")),
    "a tied head with a bias": transformer(head=HeadConfig(tied=True, bias=True)),
    "parallel branches with two norms": decoder(replace(BLOCK, parallel="two_norms")),
    "a bare first mixer": decoder(prefix=(replace(BLOCK, mixer_pre=False),)),
    "learned positions with an offset": decoder(BLOCK, positions=LearnedPositions(length=33, offset=2)),
    "types and narrow embeddings": transformer(
        embed=EmbedConfig(types=2, width=20),
        decoder=None,
        encoder=replace(ENCODER, positions=LearnedPositions(length=9)),
        head=HeadConfig(tied=True, bias=True, transform=TransformConfig(bias=False)),
    ),
    "tasks and no head": transformer(head=None, tasks=(TaskConfig(name="a", labels=3, hidden="tanh"), POOLED)),
    "a mixture of experts": decoder(BLOCK, replace(BLOCK, mlp=MIXTURE)),
    "a biased mixture": decoder(replace(BLOCK, mlp=BIASED_MIXTURE)),
    "latent attention": decoder(replace(BLOCK, mixer=LATENT), replace(BLOCK, mixer=replace(LATENT, query_rank=None))),
    "biased latent attention": decoder(replace(BLOCK, mixer=replace(LATENT, bias=True))),
    "norms over all heads": decoder(replace(BLOCK, mixer=replace(ATTENTION, qk_norm=RMS, qk_norm_over="all"))),
    "norms without scales": decoder(replace(BLOCK, mixer=replace(ATTENTION, qk_norm=NormConfig(scale="none")))),
    "sinks": decoder(replace(BLOCK, mixer=replace(ATTENTION, sinks=True))),
    "relative biases of the stack": decoder(replace(BLOCK, mixer=replace(ATTENTION, position=RelativeBias()))),
    "relative biases of each layer": decoder(
        replace(BLOCK, mixer=replace(ATTENTION, position=RelativeBias(shared=False)))
    ),
    "modules that look ahead": transformer(ahead=AheadConfig(depth=2, block=BLOCK)),
    "a generator": transformer(
        decoder=None,
        encoder=ENCODER,
        head=None,
        generator=GeneratorConfig(d_model=12, encoder=ENCODER, head=HeadConfig(tied=True, transform=TransformConfig())),
    ),
    "no repeats": decoder(BLOCK, repeats=0, prefix=(BLOCK,)),
    "an encoder alone": transformer(encoder=ENCODER, decoder=None),
    "an encoder and a decoder": transformer(encoder=ENCODER, decoder=StackConfig(pattern=(CROSS,), repeats=2)),
}


@pytest.mark.parametrize("name", PRESETS)
def test_the_count_of_a_preset_is_that_of_the_built_model(name):
    config = PRESETS[name]()
    assert accounting.parameters(config).total == tree.size(tree.abstract(config))


@pytest.mark.parametrize("name", ODD)
def test_the_count_of_an_odd_model_is_that_of_the_built_one(name):
    assert accounting.parameters(ODD[name]).total == tree.size(tree.abstract(ODD[name]))


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_the_count_is_the_published_one(name, count):
    assert accounting.parameters(PRESETS[name]()).total == count


def test_gpt3_has_175_billion_parameters():
    assert accounting.parameters(gpt3.gpt3_175b()).total == pytest.approx(175e9, rel=0.005)


def test_each_part_is_the_sum_of_the_parameters_named_after_it():
    config = ODD["a prefix, a suffix and two kinds of layers"]
    sizes = {name: math.prod(p.shape) for name, p in tree.params(tree.abstract(config)).items()}
    parts = accounting.parameters(config)

    def under(word: str) -> int:
        return sum(size for name, size in sizes.items() if f"/{word}/" in f"/{name}/")

    assert (parts.embedding, parts.head) == (under("embed"), under("head"))
    assert (parts.attention, parts.mlp) == (under("mixer"), under("mlp"))
    assert parts.norms == under("mixer_norms") + under("mlp_norms") + under("final_norm")


def dot_flops(jaxpr) -> int:
    """Two for every multiply-add of the program's matrix products, loops counted as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (left, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in left)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in _inner(equation.params):
            total += times * dot_flops(getattr(inner, "jaxpr", inner))
    return total


def _inner(params):
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns") or hasattr(getattr(item, "jaxpr", None), "eqns"):
                yield item


def step_flops(config: TransformerConfig, rows: int, length: int) -> int:
    tokens = jnp.zeros((rows, length), jnp.int32)

    def loss(model):
        inputs = Inputs(tokens=tokens, encoder=Inputs(tokens=tokens) if config.encoder and config.decoder else None)
        return model.logits(model(inputs).hidden_BTD).sum()

    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return dot_flops(jax.make_jaxpr(jax.grad(loss))(model).jaxpr)


def uncausal(config: TransformerConfig) -> TransformerConfig:
    """The same model where every token sees every token, as the reference kernel computes it."""
    stack = config.decoder
    if stack is None:
        return config
    blocks = tuple(replace(b, mixer=replace(b.mixer, causal=False, window=None)) for b in stack.pattern)
    return replace(config, decoder=replace(stack, pattern=blocks))


@pytest.mark.parametrize("config", [transformer(), ODD["an encoder and a decoder"], ODD["an encoder alone"]])
def test_flops_are_those_of_the_matrix_products_of_the_traced_step(config, monkeypatch):
    monkeypatch.setattr(kernels, "attention", kernels.reference_attention)
    rows, length = 2, 12
    whole = accounting.flops_per_token(uncausal(config), length)
    assert step_flops(config, rows, length) == whole * rows * length


@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 5), (True, 99), (False, None), (False, 5)])
def test_attention_counts_the_keys_that_the_mask_shows(causal, window):
    T, block = 12, replace(BLOCK, mixer=replace(ATTENTION, causal=causal, window=window))
    mask = kernels.Mask(causal=causal, window=window).visible(T, T)
    seen = 1.0 if mask is None else float(mask.mean())
    everything = replace(BLOCK, mixer=replace(ATTENTION, causal=False, window=None))
    nothing = 6 * (accounting.parameters(decoder(block)).total - 97 * 36 - 2 * 2 * 36)
    mixing = accounting.flops_per_token(decoder(everything), T) - nothing
    assert accounting.flops_per_token(decoder(block), T) - nothing == pytest.approx(seen * mixing, rel=1e-6)


def test_a_tied_head_costs_as_much_as_one_of_its_own():
    tied = transformer(head=HeadConfig(tied=True))
    assert accounting.flops_per_token(tied, 16) == accounting.flops_per_token(transformer(), 16)


def test_remat_keeps_less_the_fewer_tensors_it_names():
    def activations(remat: Remat | None) -> int:
        config = transformer(decoder=replace(transformer().stack, repeats=20, remat=remat))
        return accounting.memory(config, rows=2, sequence_length=64).activations

    full, some = activations(Remat()), activations(Remat(save=("query", "key", "value")))
    assert full < some < activations(None)
    assert some - full == 20 * (60 + 20 + 20) * 2 * (2 * 64)  # layers, query + key + value, bytes, tokens


def test_every_tensor_that_remat_can_name_has_a_size():
    from pretrain.models.config import TENSORS

    assert set(TENSORS) == set(accounting.tensors(BLOCK, 36))


@pytest.mark.parametrize("name", ["a prefix, a suffix and two kinds of layers", "latent attention"])
def test_the_cache_of_a_token_is_what_an_empty_cache_allocates(name):
    from pretrain.models.cache import empty_cache

    config = ODD[name]
    layers = jax.eval_shape(lambda: empty_cache(config, 1, 1, jnp.bfloat16).layers)
    assert accounting.cache_bytes_per_token(config) == sum(2 * math.prod(x.shape) for x in jax.tree.leaves(layers))


def test_accounting_works_without_jax():
    code = "import sys, pretrain.models.accounting; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
