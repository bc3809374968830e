import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain import presets
from pretrain.cli import main
from pretrain.config import RunConfig
from pretrain.data.config import CorpusConfig, DataConfig, JsonLines, TrainSentencePiece
from pretrain.serial import encode

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards mix 0123456789 (def x) = [y] {z};"
FILE = """
from dataclasses import replace
from pretrain import presets
def run():
    config = presets.load("runs.smoke")
    return {value}
"""


def tiny() -> RunConfig:
    """On texts/good.jsonl."""
    smoke = presets.load("runs.smoke")
    corpus = CorpusConfig(
        source=JsonLines(paths=("texts/good.jsonl",)),
        tokenizer=TrainSentencePiece(vocab_size=420, sample_bytes=100_000),
        validation_fraction=0.2,
    )
    model = replace(smoke.model, vocab_size=420, d_model=32)
    data = DataConfig(corpus=corpus, sequence_length=16)
    return replace(smoke, model=model, data=data, steps=30)


def write_texts(folder: Path) -> None:
    folder.mkdir()
    (folder / "empty").mkdir()
    texts = [f"{WORDS[7 * (i % 5) :]} {i}" + "\n" for i in range(60)]
    (folder / "good.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (folder / "short.jsonl").write_text('{"text": "a few words"}\n')
    (folder / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (folder / "field.jsonl").write_text('{"body": "words"}\n')
    (folder / "blank.jsonl").write_text('{"text": ""}\n')
    (folder / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03")
    (folder / "bytes.txt").write_bytes(b"caf\xe9 " * 200)
    (folder / "notes.txt").write_text("some words\n")


def write_configs(folder: Path) -> None:
    folder.mkdir()
    (folder / "good.py").write_text("from tests.cli.conftest import tiny as run\n")
    (folder / "syntax.py").write_text("def run(:\n")
    (folder / "norun.py").write_text("x = 1\n")
    (folder / "raises.py").write_text("def run():\n    return 1 / 0\n")
    (folder / "number.py").write_text("def run():\n    return 5\n")
    (folder / "problems.py").write_text(FILE.format(value="replace(config, steps=0, seed=-1)"))


def write_runs(folder: Path) -> None:
    config = encode(tiny())
    facts = {
        "cut": "{",
        "other": '{"hello": 1}',
        "unknown": json.dumps({"config": {**config, "colour": 1}}),
        "wrong": json.dumps({"config": {**config, "steps": "many", "rules": "tp"}}),
        "begun": json.dumps({"config": config}),
        "strange": json.dumps({"config": {**config, "optimizer": {"kind_of": "posix.system", "command": "true"}}}),
        "deep": '{"config": ' + "[" * 100 + "]" * 100 + "}",
        "twice": '{"config": {}, "config": {}}',
        "endless": json.dumps({"config": {**config, "steps": 10**30, "optimizer": {"peak_lr": float("inf")}}}),
    }
    for name, text in facts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "run.json").write_text(text)
    (folder / "empty").mkdir()
    (folder / "stranger").mkdir()
    (folder / "stranger" / "holiday.jpg").write_bytes(b"jpg")
    (folder / "file").write_text("x")


def write_damaged_corpora(runs: Path) -> None:
    """Copies of the run `begun` and its corpus, each with one file that is not what it was."""
    for name in ("shard_cut", "shard_gone", "manifest_cut", "manifest_old", "tokenizer_other"):
        shutil.copytree(runs / "begun", runs / name)
    shard = Path("data") / "train-00000.array_record"
    (runs / "shard_cut" / shard).write_bytes((runs / "begun" / shard).read_bytes()[:1000])
    (runs / "shard_gone" / shard).unlink()
    (runs / "manifest_cut/data/manifest.json").write_text("{")
    (runs / "manifest_old/data/manifest.json").write_text('{"version": 0}')
    shutil.copy(runs.parent / "tokenizers/broken.model", runs / "tokenizer_other/data/tokenizer/tokenizer.model")


def write_hub(folder: Path) -> None:
    files = {
        "empty": {"notes.txt": "x"},
        "cut": {"config.json": "{"},
        "alien": {"config.json": '{"architectures": ["AlienForCausalLM"], "model_type": "alien"}'},
        "unweighted": {"config.json": json.dumps(LLAMA)},
        "pickled": {"config.json": json.dumps(LLAMA), "pytorch_model.bin": "x"},
        "damaged": {"config.json": json.dumps(LLAMA), "model.safetensors": "x"},
        "deep": {"config.json": "[" * 100_000},
        "twice": {"config.json": '{"model_type": "llama", "model_type": "gpt2"}'},
        "escaping": {"config.json": json.dumps(LLAMA), "model.safetensors.index.json": ESCAPING},
        "linked": {"config.json": json.dumps(LLAMA)},
        "huge": {"config.json": json.dumps({**LLAMA, "num_hidden_layers": 2**60})},
    }
    for name, contents in files.items():
        (folder / name).mkdir(parents=True)
        for file, text in contents.items():
            (folder / name / file).write_text(text)
    (folder / "linked/model.safetensors").symlink_to("../damaged/model.safetensors")
    (folder / "huge.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))


ESCAPING = json.dumps({"weight_map": {"a": "../damaged/model.safetensors"}})
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def prepared_world(tmp_path_factory) -> Path:
    """A directory with configs, texts, tokenizers, runs and Hugging Face folders, most of them wrong."""
    world = tmp_path_factory.mktemp("world")
    write_configs(world / "my")
    write_texts(world / "texts")
    write_runs(world / "runs")
    write_hub(world / "hub")
    (world / "tokenizers" / "empty").mkdir(parents=True)
    (world / "tokenizers" / "broken.model").write_text("no model")
    (world / "tokenizers" / "tokenizer.json").write_text("{}")
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    grown = {"type": "Sequence", "normalizers": [double] * 40}
    (world / "tokenizers" / "grows.json").write_text(json.dumps({"model": model, "normalizer": grown}))
    (world / "tokenizers" / "far.json").write_text(json.dumps({"model": {**model, "vocab": {"a": 2**40}}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        assert main(["data", "prepare", "my/good.py", "--run", "runs/begun", "--workers", "1"]) == 0
    write_damaged_corpora(world / "runs")
    return world


@pytest.fixture
def world(prepared_world, monkeypatch) -> Path:
    """The same, as the working directory."""
    monkeypatch.chdir(prepared_world)
    return prepared_world
