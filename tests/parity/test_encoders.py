"""Encoders have the hidden states, logits and labels of `transformers` after import and after export."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from pretrain.configs import bert, distilbert, electra, minilm, modernbert, roberta
from pretrain.models import convert, tree
from pretrain.models.convert import engine
from pretrain.models.convert import safetensors as files
from pretrain.models.convert.folder import FAMILIES, describe
from pretrain.models.transformer import Inputs, Transformer
from tests.parity import encoders, zoo
from tests.parity.encoders import LENGTH, MODELS, SENTENCE, Loaded, answers, both, tokens, types

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return Loaded(tmp_path_factory)


def assert_near(theirs, ours):
    for name, y in ours.items():
        assert y.shape == theirs[name].shape, name
        assert np.abs(y - theirs[name]).max() <= TOLERANCE, name


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_and_heads_are_the_same_after_import_and_after_export(name, loaded, tmp_path):
    model, _, ours = loaded(name)
    theirs, found = both(name, model, ours)
    assert_near(theirs, found)
    convert.save(ours, tmp_path)
    assert describe(ours.config)[0].architecture == MODELS[name][0]
    reread, info = encoders.reread(tmp_path, MODELS[name][0])
    assert not any(info.values()), info
    again, _ = both(name, reread, ours)
    assert_near(again, found)
    _, read = convert.load(tmp_path)
    assert read.config == ours.config
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), read, ours))


ALONE = ["bert_pretraining", "roberta_masked", "distilbert", "electra_discriminator", "modernbert_masked"]


@pytest.mark.parametrize("name", ALONE)
def test_padding_is_not_seen(name, loaded):
    model, _, ours = loaded(name)
    tokens_BT = tokens()
    lengths = np.array([24, 15, 9])
    there_BT = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    theirs = encoders.their_outputs(model, input_ids=tokens_BT, attention_mask=there_BT)
    found = answers(ours, MODELS[name][0], tokens=tokens_BT, segments=there_BT)
    for row, length in enumerate(lengths):

        def there(outputs, row=row, length=length):
            """Of one row, its tokens alone."""
            return {name: y[row, :length] if y.shape[1:2] == (LENGTH,) else y[row] for name, y in outputs.items()}

        assert_near(there(theirs), there(found))
        short = answers(ours, MODELS[name][0], tokens=tokens_BT[row : row + 1, :length])
        assert_near({name: y[0] for name, y in short.items()}, there(found))


@pytest.mark.parametrize("name", ["bert_masked", "roberta_masked", "electra", "modernbert"])
def test_three_documents_in_one_row_are_three_rows(name, loaded):
    _, _, ours = loaded(name)
    lengths, tokens_BT = (5, 12, 7), tokens()
    alone = [answers(ours, MODELS[name][0], tokens=tokens_BT[i : i + 1, :n]) for i, n in enumerate(lengths)]
    packed = {
        "tokens": np.concatenate([tokens_BT[i, :n] for i, n in enumerate(lengths)])[None],
        "segments": np.repeat([1, 2, 3], lengths)[None],
        "positions": np.concatenate([np.arange(n) for n in lengths])[None],
    }
    found = answers(ours, MODELS[name][0], **packed)
    for key, y in found.items():
        assert np.abs(y[0] - np.concatenate([part[key][0] for part in alone])).max() <= TOLERANCE


def counted(architecture: str, **settings) -> int:
    """Of `transformers`, without memory for the numbers."""
    model = getattr(zoo.transformers, architecture)
    with zoo.torch.device("meta"):
        return sum(p.numel() for p in model(model.config_class(**settings)).parameters())


LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "vocab_size": 50265}
WIDE = {"embedding_size": 768, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


def without(config, **more):
    return replace(config, generator=None, head=None, **more)


COUNTS = {
    "bert_base": (bert.headless(bert.base()), 109482240, "BertModel", {}),
    "bert_base_heads": (bert.base(), 110106428, "BertForPreTraining", {}),
    "bert_large": (bert.headless(bert.large()), 335141888, "BertModel", LARGE),
    "roberta_base": (bert.headless(roberta.base()), 124645632, "RobertaModel", ROBERTA),
    "roberta_base_no_pooler": (without(roberta.base()), 124055040, None, {}),
    "roberta_base_head": (roberta.base(), 124697433, "RobertaForMaskedLM", ROBERTA),
    "distilbert_base": (without(distilbert.base()), 66362880, "DistilBertModel", {}),
    "distilbert_base_head": (distilbert.base(), 66985530, "DistilBertForMaskedLM", {}),
    "electra_small": (without(electra.small(), tasks=()), 13483008, "ElectraModel", {}),
    "electra_small_head": (without(electra.small()), 13549057, "ElectraForPreTraining", {}),
    "electra_base": (without(electra.base(), tasks=()), 108891648, "ElectraModel", WIDE),
    "electra_large": (without(electra.large(), tasks=()), 334092288, "ElectraModel", LARGE | {"embedding_size": 1024}),
    "modernbert_base": (without(modernbert.base()), 149014272, "ModernBertModel", {}),
    "modernbert_base_head": (modernbert.base(), 149655232, "ModernBertForMaskedLM", {}),
    "modernbert_large": (
        without(modernbert.large()),
        394781696,
        "ModernBertModel",
        LARGE | {"num_hidden_layers": 28, "intermediate_size": 2624},
    ),
    "minilm_l6": (minilm.l6_h384(), 22713216, "BertModel", MINILM),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_published_and_as_transformers_counts(name):
    config, count, architecture, settings = COUNTS[name]
    assert tree.size(tree.abstract(config)) == count
    assert architecture is None or counted(architecture, **settings) == count


@pytest.mark.parametrize("make", [bert.base, roberta.large, distilbert.base, modernbert.base, minilm.l6_h384])
def test_a_published_config_comes_back_as_it_went(make):
    family, values = describe(make())
    config = replace(make(), tasks=tuple(task for task in make().tasks if task.name != "sentence"))
    assert replace(family.from_hf(values), init=config.init) == config


def test_the_defaults_are_those_of_transformers():
    for architecture, make in {
        "BertForPreTraining": bert.base,
        "DistilBertForMaskedLM": distilbert.base,
        "ModernBertForMaskedLM": modernbert.base,
    }.items():
        values = getattr(zoo.transformers, architecture).config_class().to_dict()
        family = next(f for f in FAMILIES if f.architecture == architecture)
        assert replace(family.from_hf(values), init=make().init) == make()


def test_gradients_of_masked_words_and_next_sentences_are_those_of_torch(loaded):
    model, _, ours = loaded("bert_pretraining")
    tokens_BT, follows_B = tokens(), np.array([0, 1, 1])
    types_BT = types("bert_pretraining", tokens_BT)
    masked_BT = np.random.default_rng(2).random(tokens_BT.shape) < 0.3
    read_BT, labels_BT = np.where(masked_BT, 3, tokens_BT), np.where(masked_BT, tokens_BT, -100)
    given = {"input_ids": read_BT, "token_type_ids": types_BT, "labels": labels_BT, "next_sentence_label": follows_B}
    model.zero_grad()
    model(**{name: encoders.tensor(x) for name, x in given.items()}).loss.backward()
    arrays = {name: p.grad.numpy() for name, p in model.named_parameters()}
    lazy = {name: files.Tensor(a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()}
    family, _ = describe(ours.config)
    expected = tree.params(engine.to_ours(family, ours.config, lazy, lambda name, param, value: jnp.asarray(value)))

    def chosen(logits, labels):
        return jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(labels)[..., None], -1)[..., 0]

    def loss(ours: Transformer):
        hidden_BTD = ours(Inputs(tokens=jnp.asarray(read_BT), types=jnp.asarray(types_BT))).hidden_BTD
        words = -jnp.sum(chosen(ours.logits(hidden_BTD), tokens_BT) * masked_BT) / masked_BT.sum()
        return words - chosen(ours.task("next_sentence", hidden_BTD), follows_B).mean()

    found = tree.params(jax.jit(jax.grad(loss))(ours))
    norm = np.linalg.norm
    largest = max(norm(g[...]) for g in expected.values())
    for name, g in found.items():
        gap, size = norm(g[...] - expected[name][...]), norm(expected[name][...])
        if name.endswith("key_bias"):  # a number added to all keys moves no probability: zero, up to rounding
            assert max(gap, size) <= 1e-6 * largest, name
        else:
            assert gap <= 1e-5 * size, (name, gap, size)  # the tanh form of GELU is 5e-4 away
            assert size > 1e-4 * largest, (name, size)


def test_the_mean_over_a_sentence_is_that_of_transformers(loaded):
    model, _, ours = loaded("bert")
    ours = tree.like(
        tree.abstract(replace(ours.config, tasks=(*ours.config.tasks, SENTENCE))),
        lambda n, _: tree.params(ours)[n][...],
    )
    there_BT = (np.arange(LENGTH) < np.array([24, 15, 9])[:, None]).astype(np.int32)
    hidden = encoders.their_outputs(model, input_ids=tokens(), attention_mask=there_BT)["last_hidden_state"]
    mean = (hidden * there_BT[..., None]).sum(1) / there_BT.sum(1, keepdims=True)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    inputs = Inputs(tokens=jnp.asarray(tokens()), segments=jnp.asarray(there_BT))
    found = ours.task("sentence", ours(inputs).hidden_BTD, inputs.segments)
    assert np.abs(found - expected).max() <= TOLERANCE
