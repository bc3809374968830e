"""An export is whole, says what it is, destroys nothing, and proves itself."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pretrain import exchange
from pretrain.configs.llama import llama
from pretrain.data.config import TrainSentencePiece
from pretrain.data.tokenizer_sentencepiece import train_sentencepiece
from pretrain.errors import CheckFailed, UserError
from pretrain.models import convert, tree
from pretrain.models.transformer import Transformer, unrolled
from pretrain.opened import OpenRun
from tests.parity import zoo


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Transformer:
    folder = tmp_path_factory.mktemp("llama")
    zoo.theirs("llama_gqa").save_pretrained(folder)
    return convert.load(folder)[1]


def tokenizer_writer(folder):
    (folder / "tokenizer.json").write_text("{}")
    return {"bos_token_id": 3, "eos_token_id": 4}


def export(model, folder, **more):
    facts = {"training data": "a | b", "validation": {"loss": 2.5}}
    exchange.export_model(model, tokenizer_writer, folder, generation={"temperature": 0.7}, card=facts, **more)


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")  # where the environment forbids them
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_proves_itself_to_transformers(model, tmp_path, dtype, capfd, monkeypatch):
    logging = zoo.transformers.utils.logging
    monkeypatch.setattr(logging, "_tqdm_active", True)
    export(model, tmp_path / "out", dtype=dtype, max_shard_bytes=20_000)
    report = exchange.check_export(tmp_path / "out", model)
    assert report["max_abs_logit_difference"] <= 2e-5
    assert report["compared_with"] == f"transformers {zoo.transformers.__version__}"
    assert report["unread_tensors"] == []
    assert capfd.readouterr().err == "", "a library speaks between our lines"
    assert logging.is_progress_bar_enabled()


def test_without_transformers_an_export_is_compared_with_the_model(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    export(unrolled(model), tmp_path / "out", dtype="bfloat16")
    report = exchange.check_export(tmp_path / "out", model)
    assert report == {"max_abs_logit_difference": 0.0, "compared_with": "own reload", "unread_tensors": []}


def test_an_export_says_what_it_is(model, tmp_path):
    export(model, tmp_path / "out", length=96)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors", "README.md", "tokenizer.json", "export.json")
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["max_position_embeddings"], config["eos_token_id"], config["pad_token_id"]) == (96, 4, None)
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000.0
    generation = zoo.transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.temperature, generation.bos_token_id) == (0.7, 3)
    card = (tmp_path / "out/README.md").read_text()
    assert "| training data | a \\| b |" in card
    assert "## validation\n\n| | |\n|---|---|\n| loss | 2.5 |" in card
    assert "LlamaForCausalLM" in card


def test_a_run_is_exported_with_its_tokenizer(tmp_path):
    text = Path(json.__file__).read_text()
    tokenizer = train_sentencepiece([text], TrainSentencePiece(vocab_size=420), tmp_path / "tokenizer")
    config = llama(vocab_size=420, d_model=8, layers=1, heads=2, d_ff=12)
    rng = np.random.default_rng(0)
    model = tree.like(tree.abstract(config), lambda _, p: jnp.asarray(rng.normal(size=p.shape), p.dtype))
    convert.save(model, tmp_path / "source", length=77)
    opened = OpenRun(path=epath.Path(tmp_path / "source"), config=None, model=model, tokenizer=tokenizer, step=40)
    report = exchange.export_run(opened, tmp_path / "out", check=True)
    assert report["unread_tensors"] == []
    theirs = zoo.transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs(text[:500], add_special_tokens=False)["input_ids"] == tokenizer.encode(text[:500])
    config = zoo.transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos, tokenizer.eos)
    assert config.max_position_embeddings == 77


def test_an_earlier_export_is_replaced_and_anything_else_is_left_alone(model, tmp_path):
    export(model, tmp_path / "out", max_shard_bytes=20_000)
    export(model, tmp_path / "out")
    assert not list((tmp_path / "out").glob("model-*"))
    (tmp_path / "out/thesis.tex").write_text("my only copy")
    with pytest.raises(UserError) as error:
        export(model, tmp_path / "out")
    assert str(error.value) == (
        f"{tmp_path}/out: found thesis.tex, which no export wrote; choose a new or empty folder or move it away"
    )
    assert (tmp_path / "out/thesis.tex").read_text() == "my only copy"


def test_a_failing_export_leaves_nothing(model, tmp_path):
    def broken(folder):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        exchange.export_model(model, broken, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_bit_is_found(model, tmp_path):
    export(model, tmp_path / "out")
    file = tmp_path / "out/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckFailed) as error:
        exchange.check_export(tmp_path / "out", model)
    assert error.value.problems == (
        f"{tmp_path}/out: model.safetensors was changed since the export, its SHA-256 is another; export again",
        f"{tmp_path}/out: lm_head.weight is not the model's, expected every bit; export again",
    )


def test_another_model_is_found(model, tmp_path):
    export(model, tmp_path / "out")
    with pytest.raises(CheckFailed, match=r"model\.embed_tokens\.weight.* and \d+ more is not the model's"):
        exchange.check_export(tmp_path / "out", jax.tree.map(lambda p: p + 1, model))
