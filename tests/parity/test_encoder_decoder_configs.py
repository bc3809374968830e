"""Published encoder-decoders have the parameters of `transformers`, start like them, and come back as they went."""

import inspect
import math

import jax
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("torch")
pytest.importorskip("transformers")

from pretrain.configs import bart, marian, original_transformer, pegasus, t5
from pretrain.errors import UserError
from pretrain.models import accounting, convert, tree
from pretrain.models.convert import safetensors as files
from pretrain.models.convert.bart import BART_FAMILY
from pretrain.models.convert.fields import essence
from pretrain.models.convert.folder import describe
from pretrain.models.convert.marian import MARIAN
from pretrain.models.convert.t5 import T5_FAMILY
from pretrain.models.transformer import Transformer
from tests.parity import encoder_decoders as zoo
from tests.parity.zoo import torch, transformers

PRESETS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": make
    for module in (t5, bart, marian, pegasus, original_transformer)
    for name, make in inspect.getmembers(module, inspect.isfunction)
    if make.__module__ == module.__name__ and not inspect.signature(make).parameters
}
PUBLISHED = {
    "t5.small": 60_506_624,
    "t5.base": 222_903_552,
    "t5.large": 737_668_096,
    "t5.t5_3b": 2_851_598_336,
    "t5.t5_11b": 11_307_321_344,
    "t5.t5_1_1_small": 76_961_152,
    "t5.t5_1_1_base": 247_577_856,
    "t5.t5_1_1_large": 783_150_080,
    "t5.t5_1_1_xl": 2_849_757_184,
    "t5.t5_1_1_xxl": 11_135_332_352,
    "t5.mt5_small": 300_176_768,
    "bart.base": 139_420_416,
    "bart.large": 406_291_456,
    "bart.mbart_large": 610_851_840,
    "pegasus.large": 568_699_904,
}


def their_parameters(config) -> int:
    """With the head that `transformers` builds tied and reads apart, and a bias of logits that is a buffer there;
    without biases of attention that an export fills with zeros."""
    family, values = describe(config)
    cls, biased = getattr(transformers, family.architecture), config.stack.blocks[0].mixer.bias
    with torch.device("meta"):
        built = cls(cls.config_class.from_dict(values | {"pad_token_id": None}))
    trained = {name: p for name, p in built.named_parameters() if p.requires_grad}
    count = sum(p.numel() for name, p in trained.items() if biased or not name.endswith("_proj.bias"))
    return count + (not config.head.tied) * config.vocab_size * config.d_model + config.head.bias * config.vocab_size


@pytest.mark.parametrize("name", PRESETS)
def test_the_parameters_are_those_of_transformers(name):
    count = accounting.parameters(PRESETS[name]()).total
    assert count == their_parameters(PRESETS[name]()) == PUBLISHED.get(name, count)


@pytest.mark.parametrize(("make", "millions"), [("base", 65), ("big", 213)])
def test_the_original_transformer_is_about_as_large_as_its_paper_says(make, millions):
    config = PRESETS[f"original_transformer.{make}"]()
    count, table = accounting.parameters(config).total, config.vocab_size * config.d_model
    D, F = config.d_model, config.decoder.blocks[0].mlp.d_ff
    assert count == table + 6 * (12 * D * D + 2 * (2 * D * F + F + D) + 10 * D)
    assert abs(count / 1e6 / millions - 1) < 0.04


@pytest.mark.parametrize("name", PRESETS)
def test_a_published_size_comes_back_as_it_went(name):
    config = PRESETS[name]()
    family, values = describe(config)
    assert essence(family.from_hf(values)) == essence(config)


def standard_deviations(config) -> dict[str, float]:
    """Of each matrix and table, by its name without the place of the layer."""
    params = tree.params(Transformer(config, rngs=nnx.Rngs(0)))
    return {name.replace("/pattern/0", ""): float(np.std(p[...])) for name, p in params.items() if np.std(p[...]) > 0}


def assert_near(found: dict[str, float], expected: dict[str, float]):
    assert found.keys() == expected.keys()
    for name, std in expected.items():
        assert math.isclose(found[name], std, rel_tol=0.15 if name.endswith("relative") else 0.03), name


def attention(query: float, key: float, out: float) -> dict[str, float]:
    return {"query": query, "key": key, "value": key, "out": out}


@pytest.mark.parametrize("gated", [False, True])
def test_t5_starts_as_in_transformers(gated):
    D, F, heads, H = 96, 160, 6, 20
    config = t5.t5(d_model=D, d_ff=F, layers=2, heads=heads, head_dim=H, vocab_size=300, gated=gated, tied=not gated)
    family, values = describe(config)
    built = getattr(transformers, family.architecture)(transformers.T5Config.from_dict(values))
    theirs = {name: p.std().item() for name, p in built.named_parameters() if p.ndim == 2}
    found = standard_deviations(config)
    names = {"query": "q", "key": "k", "value": "v", "out": "o"}
    maps = attention((D * H) ** -0.5, D**-0.5, (heads * H) ** -0.5)
    expected = {"embed/tokens": 1.0} | ({"head/kernel": D**-0.5} if gated else {})
    for stack in ("encoder", "decoder"):
        expected[f"{stack}/relative"] = D**-0.5
        expected |= {f"{stack}/mixer/{name}": std for name, std in maps.items()}
        mlp = {"up": D**-0.5, "down": F**-0.5} | ({"gate": D**-0.5} if gated else {})
        expected |= {f"{stack}/mlp/{name}": std for name, std in mlp.items()}
        for name, std in maps.items():
            assert math.isclose(
                theirs[f"{stack}.block.1.layer.0.SelfAttention.{names[name]}.weight"], std, rel_tol=0.05
            )
    expected |= {f"decoder/cross/{name}": std for name, std in maps.items()}
    assert_near(found, expected)


def test_bart_and_the_original_transformer_start_as_published():
    D, F, V = 64, 192, 500
    small = {"d_model": D, "layers": 2, "heads": 4, "d_ff": F, "vocab_size": V}
    tables = [f"{stack}/entry/positions" for stack in ("encoder", "decoder")]
    maps = [
        f"{stack}/{name}"
        for stack in ("encoder/mixer", "decoder/mixer", "decoder/cross")
        for name in attention(0, 0, 0)
    ]
    mlps = [f"{stack}/mlp/{name}" for stack in ("encoder", "decoder") for name in ("up", "down")]
    every = dict.fromkeys(["embed/tokens", *maps, *mlps], 0.02)
    assert_near(standard_deviations(bart.bart(**small, length=300)), every | dict.fromkeys(tables, 0.02))
    assert_near(standard_deviations(marian.marian(**small)), every)
    glorot = dict.fromkeys(maps, D**-0.5) | dict.fromkeys(mlps, (2 / (D + F)) ** 0.5) | {"embed/tokens": D**-0.5}
    assert_near(standard_deviations(original_transformer.original_transformer(**small)), glorot)


def test_the_original_transformer_is_written_with_zeros_for_biases_it_does_not_have(tmp_path):
    config = original_transformer.original_transformer(
        vocab_size=zoo.VOCAB, d_model=32, layers=2, heads=4, d_ff=44, decoder_layers=3
    )
    model, pairs = Transformer(config, rngs=nnx.Rngs(0)), zoo.pairs()
    convert.save(model, tmp_path, length=40)
    read, info = transformers.MarianMTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    expected = zoo.our_answer(model, *pairs)
    for ours, theirs in zip(expected, zoo.their_answer(read.eval(), *pairs)):
        assert np.abs(ours - theirs).max() <= 2e-5
    again, loaded = convert.load(tmp_path)
    assert essence(again) == essence(config)
    assert all(map(np.array_equal, jax.tree.leaves(loaded), jax.tree.leaves(model)))


def changed(name: str, folder, tensor: str):
    """The folder of a model of `transformers` with one tensor moved by one."""
    zoo.theirs(name).save_pretrained(folder)
    tensors = {n: t.read().copy() for n, t in files.read_folder(folder).items()}
    tensors[tensor] = tensors[tensor] + 1
    files.write_file(
        folder / files.SINGLE, {n: files.Tensor(a.shape, a.dtype, lambda a=a: a) for n, a in tensors.items()}
    )
    return folder


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("bart", "final_logits_bias"), ("pegasus", "model.decoder.embed_positions.weight")],
)
def test_a_constant_with_other_numbers_is_refused(name, tensor, tmp_path):
    with pytest.raises(UserError) as error:
        convert.load(changed(name, tmp_path, tensor))
    architecture = zoo.MODELS[name][0]
    assert error.value.problems == (
        f"tensor {tensor}: found other numbers than {architecture} computes; export the model again",
    )


REFUSED = {
    "untied": (BART_FAMILY, zoo.BART | {"tie_word_embeddings": False}, "tie_word_embeddings is False, only True is"),
    "two vocabularies": (MARIAN, zoo.MARIAN | {"decoder_vocab_size": 9}, "decoder_vocab_size is 9, only 61 is"),
    "two tables": (
        MARIAN,
        zoo.MARIAN | {"share_encoder_decoder_embeddings": False},
        "share_encoder_decoder_embeddings is False, only True is",
    ),
    "another activation": (
        T5_FAMILY,
        zoo.T5 | {"dense_act_fn": "silu"},
        "dense_act_fn is 'silu', only 'relu' is",
    ),
    "heads": (
        BART_FAMILY,
        zoo.BART | {"encoder_attention_heads": 5},
        "encoder_attention_heads is 5, expected a divisor of d_model=32",
    ),
    "a decoder alone": (T5_FAMILY, zoo.T5 | {"is_decoder": True}, "is_decoder is True, only False is"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_config_that_means_another_model_is_refused(name):
    family, values, message = REFUSED[name]
    with pytest.raises(UserError) as error:
        family.from_hf(values)
    assert error.value.problems[0].startswith(f"config.json: {message}")
    assert len(error.value.problems) == 1
