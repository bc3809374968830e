"""Folders of encoders: what older writers left in them, two models in one, a sentence encoder's modules."""

import json
import random as draws
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

pytest.importorskip("torch")
pytest.importorskip("transformers")

from pretrain import exchange
from pretrain.configs import bert, electra
from pretrain.data.tokenizer import load_tokenizer
from pretrain.data.tokenizer_export import to_hf
from pretrain.errors import UserError, check
from pretrain.models import convert
from pretrain.models.config import GeneratorConfig, HeadConfig
from pretrain.models.convert import safetensors as files
from pretrain.models.convert.folder import describe, family_of
from pretrain.models.transformer import Inputs
from tests.parity import encoders, zoo
from tests.parity.encoders import SENTENCE, Loaded, random, tokens

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return Loaded(tmp_path_factory)


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
    _, folder, ours = loaded(name)
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
    small = bert.bert(d_model=12, layers=2, heads=4)
    assert small.encoder
    config = tiny_electra(generator=GeneratorConfig(d_model=12, encoder=small.encoder, head=small.head or HeadConfig()))
    convert.save(random(config), tmp_path)
    assert convert.load(tmp_path)[0] == config


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


JUNK = [None, True, -1, 0, 3, 10**30, float("nan"), 0.5, "x", [], [1], {}, {"a": []}, {"full_attention": 3}, ["y"] * 7]


@pytest.mark.parametrize(
    "name", ["bert_label", "roberta", "distilbert_label", "electra_generator", "modernbert_masked"]
)
def test_no_damage_to_a_config_ends_in_anything_but_a_refusal(name, loaded):
    values = files.read_json(loaded(name)[1] / "config.json")
    family, rng = family_of(values), draws.Random(0)
    ends = Counter()
    for _ in range(300):
        damaged = values | {name: rng.choice(JUNK) for name in rng.sample(sorted(values), rng.randint(1, 3))}
        try:
            check(family.from_hf(damaged))
            ends["read"] += 1
        except UserError:
            ends["refused"] += 1
    assert ends["refused"] > 100


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
    with pytest.raises(UserError, match=r"pooling_mode_mean_tokens.*pooling_mode_max_tokens.*expected one of"):
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


@pytest.mark.parametrize("name", ["bert_pretraining", "modernbert_masked", "roberta_masked_pad_3", "electra_label"])
def test_an_export_of_an_encoder_proves_itself(name, loaded, tmp_path):
    _, folder, ours = loaded(name)
    exchange.import_folder(folder, tmp_path / "run")
    report = exchange.check_export(tmp_path / "run", ours)
    assert report["max_abs_logit_difference"] <= TOLERANCE
    assert report["unread_tensors"] == []
    assert not (tmp_path / "run/generation_config.json").exists()
    assert f"pipeline_tag: {describe(ours.config)[0].pipeline}\n" in (tmp_path / "run/README.md").read_text()


@pytest.mark.parametrize("types", [False, True])
def test_an_exported_vocabulary_says_which_token_is_the_mask_and_which_text_is_the_second(types, tmp_path):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, "a", "cat", "sits"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.add_special_tokens(special)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    pair = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = tokenizers.processors.TemplateProcessing(**pair, special_tokens=ends)
    made.save(str(tmp_path / "tokenizer.json"))
    to_hf(load_tokenizer(tmp_path), tmp_path / "out", types=types)
    read = zoo.transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (read.mask_token, read.cls_token, read.sep_token, read.pad_token) == ("[MASK]", "[CLS]", "[SEP]", "[PAD]")
    pair = read("a [MASK] sits", "a cat")
    assert pair["input_ids"] == [2, 5, 4, 7, 3, 5, 6, 3]
    assert pair.get("token_type_ids") == ([0, 0, 0, 0, 0, 1, 1, 1] if types else None)
