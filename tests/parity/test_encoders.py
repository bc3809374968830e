"""Encoders have the hidden states, logits and labels of `transformers` after import and after export."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from pretrain import exchange
from pretrain.configs import bert, distilbert, electra, minilm, modernbert, roberta
from pretrain.errors import UserError
from pretrain.models import convert, tree
from pretrain.models.config import GeneratorConfig, TaskConfig
from pretrain.models.convert import engine
from pretrain.models.convert import safetensors as files
from pretrain.models.convert.folder import FAMILIES, describe
from pretrain.models.transformer import Inputs, Transformer
from tests.parity import encoders, zoo
from tests.parity.encoders import MODELS

TOLERANCE = 2e-5
LENGTH = 24


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Their model, its folder and ours read from it; made once for each name."""
    made = {}

    def get(name: str):
        if name not in made:
            model, folder = encoders.theirs(name), tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            made[name] = model, folder, convert.load(folder)[1]
        return made[name]

    return get


def tokens(rows: int = 3, length: int = LENGTH) -> np.ndarray:
    """Without the indices of padding that RoBERTa does not count."""
    return np.random.default_rng(0).integers(4, zoo.VOCAB, (rows, length), dtype=np.int32)


def types(name: str, tokens_BT: np.ndarray) -> np.ndarray | None:
    """Kinds of tokens, where the model has two or more."""
    kinds = MODELS[name][1].get("type_vocab_size", 2)
    if name.startswith(("distilbert", "modernbert")) or kinds < 2:
        return None
    return np.random.default_rng(1).integers(0, kinds, tokens_BT.shape, dtype=np.int32)


def answers(model: Transformer, architecture: str, **inputs) -> dict[str, np.ndarray]:
    family = next(f for f in FAMILIES if f.architecture == architecture)
    outputs = {"last_hidden_state": engine.hidden, **family.answers(model.config)}
    arrays = {name: jnp.asarray(x) for name, x in inputs.items() if x is not None}

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(model, inputs):
        hidden_BTD = model(inputs).hidden_BTD
        return {name: answer(model, hidden_BTD) for name, answer in outputs.items()}

    return {name: np.asarray(y) for name, y in run(model, Inputs(**arrays)).items()}


def both(name: str, model, ours: Transformer) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    tokens_BT = tokens()
    types_BT = types(name, tokens_BT)
    more = {} if types_BT is None else {"token_type_ids": types_BT}
    theirs = encoders.their_outputs(model, input_ids=tokens_BT, **more)
    return theirs, answers(ours, MODELS[name][0], tokens=tokens_BT, types=types_BT)


def assert_near(theirs, ours, at=...):
    for name, y in ours.items():
        assert y[at].shape == theirs[name][at].shape, name
        assert np.abs(y[at] - theirs[name][at]).max() <= TOLERANCE, name


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
        tokenwise = {k: y[row, :length] if y.ndim > 2 or y.shape[1] == LENGTH else y[row] for k, y in found.items()}
        assert_near(
            {k: y[row, :length] if len(tokenwise[k]) == length else y[row] for k, y in theirs.items()}, tokenwise
        )
        short = answers(ours, MODELS[name][0], tokens=tokens_BT[row : row + 1, :length])
        assert_near({k: y[0] for k, y in short.items()}, tokenwise)


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


def rewritten(folder, to, change, **fields) -> None:
    """A folder's copy with other names of tensors, and other fields of config.json."""
    tensors = {new: t for name, t in files.read_folder(folder).items() for new in change(name)}
    files.write_folder(to, tensors, 10**9)
    values = json.loads((folder / "config.json").read_text()) | fields
    (to / "config.json").write_text(json.dumps(values))


def test_checkpoints_of_2019_are_read(loaded, tmp_path):
    _, folder, ours = loaded("bert_pretraining")
    old = {"weight": "gamma", "bias": "beta"}

    def change(name: str) -> list[str]:
        start, _, last = name.rpartition(".")
        return [f"{start}.{old[last]}" if start.endswith("LayerNorm") else name]

    rewritten(folder, tmp_path, change, position_embedding_type="absolute", directionality="bidi", pooler_fc_size=768)
    position_ids = {"bert.embeddings.position_ids": np.arange(32)[None]}
    add(tmp_path, position_ids)
    read = convert.load(tmp_path)[1]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), read, ours))
    add(tmp_path, {name: value[:, ::-1] for name, value in position_ids.items()})
    with pytest.raises(UserError, match="position_ids: found other numbers than BertForPreTraining computes"):
        convert.load(tmp_path)


def add(folder, arrays: dict[str, np.ndarray]) -> None:
    tensors = {name: t.read().copy() for name, t in files.read_folder(folder).items()} | arrays
    files.write_folder(
        folder,
        {n: files.Tensor(a.shape, a.dtype, lambda a=a: np.ascontiguousarray(a)) for n, a in tensors.items()},
        10**9,
    )


def test_heads_that_config_json_does_not_tell_of_are_found(loaded, tmp_path):
    _, folder, ours = loaded("bert_pretraining")
    rewritten(folder, tmp_path, lambda name: [name], architectures=["BertForMaskedLM"])
    assert convert.load(tmp_path)[0] == ours.config


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_an_encoder_may_do_without_its_pooler(name, loaded, tmp_path):
    model, folder, ours = loaded(name)
    (tmp_path / "in").mkdir()
    rewritten(folder, tmp_path / "in", lambda name: [] if "pooler" in name else [name])
    config, read = convert.load(tmp_path / "in")
    assert config == replace(ours.config, tasks=())
    exchange.export_model(read, None, tmp_path / "out")
    report = exchange.check_export(tmp_path / "out", read)
    assert report["max_abs_hidden_state_difference"] <= TOLERANCE
    assert report["compared_with"].startswith("transformers")


def tiny_electra(**more):
    shape = {"layers": 2, "heads": 4, "vocab_size": zoo.VOCAB}
    config = electra.electra(d_model=32, generator_d_model=16, width=12, **shape)
    return replace(config, **more)


def random(config) -> Transformer:
    rng = np.random.default_rng(0)
    return tree.like(tree.abstract(config), lambda _, p: jnp.asarray(0.3 * rng.normal(size=p.shape), p.dtype))


def test_a_discriminator_and_its_generator_are_two_folders_and_one_model_again(tmp_path):
    model = random(tiny_electra())
    exchange.export_model(model, None, tmp_path / "out")
    report = exchange.check_export(tmp_path / "out", model)
    assert report["max_abs_logit_difference"] <= TOLERANCE
    assert report["unread_tensors"] == []
    assert [describe(part.config)[0].architecture for part in convert.parts(model).values()] == [
        "ElectraForPreTraining",
        "ElectraForMaskedLM",
    ]
    config, read = convert.load(tmp_path / "out")
    assert config == model.config
    inputs = Inputs(tokens=jnp.asarray(tokens()))
    (hidden, head), (again, same) = model.generated(inputs), read.generated(inputs)
    assert jnp.array_equal(head(hidden), same(again))
    generator, _ = encoders.reread(tmp_path / "out/generator", "ElectraForMaskedLM")
    theirs = encoders.their_outputs(generator, input_ids=tokens())["logits"]
    assert np.abs(theirs - head(hidden)).max() <= TOLERANCE
    exchange.import_folder(tmp_path / "out", tmp_path / "run")
    assert convert.load(tmp_path / "run")[0] == config
    add(tmp_path / "out/generator", {"electra.embeddings.word_embeddings.weight": np.zeros((61, 12), np.float32)})
    with pytest.raises(UserError, match="generator: found another embed/tokens than the model's"):
        convert.load(tmp_path / "out")


def test_a_generator_as_wide_as_its_embeddings_is_written(tmp_path):
    config = tiny_electra()
    small = electra.electra(d_model=12, generator_d_model=12, layers=2, heads=4, vocab_size=zoo.VOCAB).encoder
    config = replace(config, generator=GeneratorConfig(d_model=12, encoder=small, head=config.generator.head))
    convert.save(random(config), tmp_path)
    assert convert.load(tmp_path)[0] == config


SENTENCE = TaskConfig(name="sentence", pool="mean", normalise=True)


@pytest.mark.parametrize("pool", ["mean", "first", "last"])
@pytest.mark.parametrize("normalise", [False, True])
def test_a_sentence_encoder_keeps_its_modules(pool, normalise, tmp_path):
    task = replace(SENTENCE, pool=pool, normalise=normalise)
    config = bert.headless(bert.bert(d_model=32, layers=1, heads=4, vocab_size=zoo.VOCAB))
    config = replace(config, tasks=(*config.tasks, task))
    exchange.export_model(random(config), None, tmp_path / "out", length=20)
    kinds = [module["type"].rpartition(".")[2] for module in files.read_list(tmp_path / "out/modules.json")]
    assert kinds == ["Transformer", "Pooling"] + ["Normalize"] * normalise
    assert files.read_json(tmp_path / "out/sentence_bert_config.json")["max_seq_length"] == 20
    assert convert.load(tmp_path / "out")[0] == config


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


def test_modules_that_compute_more_are_refused(tmp_path):
    config = bert.headless(bert.bert(d_model=32, layers=1, heads=4, vocab_size=zoo.VOCAB))
    convert.save(random(replace(config, tasks=(*config.tasks, SENTENCE))), tmp_path)
    modules = files.read_list(tmp_path / "modules.json")
    modules[2]["type"] = "sentence_transformers.models.Dense"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError) as error:
        convert.load(tmp_path)
    assert error.value.problems == (
        f"{tmp_path}/modules.json: found the modules Transformer, Pooling, Dense, expected Transformer, Pooling and "
        "perhaps Normalize; remove modules.json to read the encoder alone",
    )
    pooling = files.read_json(tmp_path / "1_Pooling/config.json") | {"pooling_mode_max_tokens": True}
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (tmp_path / "modules.json").write_text(json.dumps(modules[:2]))
    with pytest.raises(UserError, match="pooling_mode_mean_tokens.*pooling_mode_max_tokens.*expected one of"):
        convert.load(tmp_path)


def test_a_tokenizer_whose_padding_has_another_index_is_refused_by_roberta(loaded, tmp_path):
    _, _, ours = loaded("roberta_masked")
    convert.save(ours, tmp_path, fields={"pad_token_id": 1, "bos_token_id": 5})
    values = files.read_json(tmp_path / "config.json")
    assert (values["pad_token_id"], values["bos_token_id"], values["eos_token_id"]) == (1, 5, None)
    with pytest.raises(UserError) as error:
        convert.save(ours, tmp_path, fields={"pad_token_id": 4})
    assert error.value.problems == (
        "pad_token_id=4: in RobertaForMaskedLM positions begin after padding, in this model after 1; "
        "set the offset of its positions to 5",
    )


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


def test_gradients_of_the_masked_words_are_those_of_torch(loaded):
    model, _, ours = loaded("bert_masked")
    tokens_BT = tokens()
    masked_BT = np.random.default_rng(2).random(tokens_BT.shape) < 0.3
    labels = np.where(masked_BT, tokens_BT, -100)
    model.zero_grad()
    model(encoders.tensor(np.where(masked_BT, 3, tokens_BT)), labels=encoders.tensor(labels)).loss.backward()
    arrays = {name: p.grad.numpy() for name, p in model.named_parameters()}
    lazy = {name: files.Tensor(a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()}
    family, _ = describe(ours.config)
    expected = tree.params(engine.to_ours(family, ours.config, lazy, lambda name, param, value: jnp.asarray(value)))

    def loss(ours: Transformer):
        logits_BTV = ours.logits(ours(Inputs(tokens=jnp.where(masked_BT, 3, tokens_BT))).hidden_BTD)
        logp_BT = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), jnp.asarray(tokens_BT)[..., None], -1)[..., 0]
        return -jnp.sum(logp_BT * masked_BT) / masked_BT.sum()

    found = tree.params(jax.jit(jax.grad(loss))(ours))
    norm = np.linalg.norm
    largest = max(norm(g[...]) for g in expected.values())
    for name, g in found.items():
        gap, size = norm(g[...] - expected[name][...]), norm(expected[name][...])
        if name.endswith("key_bias"):  # a number added to all keys moves no probability: zero, up to rounding
            assert max(gap, size) <= 1e-6 * largest, name
        else:
            assert gap <= 1e-3 * size, (name, gap, size)
            assert size > 1e-4 * largest, (name, size)


@pytest.mark.parametrize("name", ["bert_pretraining", "modernbert_masked", "roberta_masked_pad_3", "electra_label"])
def test_an_export_of_an_encoder_proves_itself(name, loaded, tmp_path):
    _, folder, ours = loaded(name)
    exchange.import_folder(folder, tmp_path / "run")
    report = exchange.check_export(tmp_path / "run", ours)
    assert report["max_abs_logit_difference"] <= TOLERANCE
    assert report["unread_tensors"] == []
    assert not (tmp_path / "run/generation_config.json").exists()
    assert f"pipeline_tag: {describe(ours.config)[0].pipeline}\n" in (tmp_path / "run/README.md").read_text()
