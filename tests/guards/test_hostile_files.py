"""Files made to fool a reader end in lines, soon and in little memory, and nothing in them is run.

What is damaged by chance is in benchmarks/fuzz.py, of which test_fuzz has a short form; other hostile files are in
parity/test_folders, models/test_gguf, data/test_hostile, cli/bad_input.txt and, of runs and corpora, test_hostile_runs.
"""

import ast
import base64
import json
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import readers
from pretrain import errors, untrusted
from pretrain.data.tokenizer import load_tokenizer
from pretrain.errors import UserError
from pretrain.models.convert import gguf, gguf_file, safetensors, sentence
from tests.guards.test_house import FLOORS, ROOT, files

SECONDS, MEGABYTES = 5.0, 60
"""Of a refusal, on a slow machine."""


def refused(read: Callable[..., Any], *args: Any) -> str:
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(UserError) as error:
        read(*args)
    seconds, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < SECONDS
    assert peak < MEGABYTES * 1e6
    assert all(p.isprintable() and len(p) < 5000 for p in error.value.problems)
    return str(error.value)


def header(shape: str, name: str = "a", size: int = 8) -> bytes:
    text = f'{{"{name}": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, {size}]}}}}'.encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


HEADERS = {
    "a shape whose size has 10^4 digits": header(str([2**47] * 1000)),
    "a shape of no number and of more than numpy counts": header("[0, 140737488355327, 140737488355327]", size=0),
    "a shape of more dimensions than numpy has": header(str([1] * 100 + [2])),
    "no number": header("[NaN]"),
    "half a number": header("[1.5]"),
    "a truth": header("[true, 2]"),
    "a length of 2^63": (2**63).to_bytes(8, "little") + bytes(100),
    "a name of a million letters": header("[3]", "x" * 10**6),
    "a name that moves the cursor": header("[3]", "\\u001b[2J"),
    "half of a letter in a name": header("[2]", "\\ud800"),
    "a hundred thousand names, the last of them twice": (lambda text: len(text).to_bytes(8, "little") + text)(
        b"{" + b", ".join(b'"%d": 0' % i for i in [*range(100_000), 99_999]) + b"}"
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused(name, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(HEADERS[name])
    assert "model.safetensors: " in refused(safetensors.read_folder, tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000 + ".safetensors", "a\0.safetensors", "..\\a.safetensors", ".."])
def test_an_index_names_files_of_its_own_folder(name, tmp_path):
    (tmp_path / safetensors.INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert "expected plain .safetensors names in its own folder" in refused(safetensors.read_folder, tmp_path)


LINKED = {
    "model.safetensors": (readers.make_safetensors, readers.read_weights),
    "model.safetensors.index.json": (readers.make_shards, readers.read_weights),
    "model-00002-of-00002.safetensors": (readers.make_shards, readers.read_weights),
    "config.json": (readers.make_model, readers.read_model),
    "modules.json": (readers.make_sentence, sentence.read),
    "1_Pooling/config.json": (readers.make_sentence, sentence.read),
    "special_tokens_map.json": (readers.make_sentence, readers.read_sentence),
    "tokenizer.model": (readers.make_sentencepiece, load_tokenizer),
}


@pytest.mark.parametrize("name", LINKED)
def test_a_link_out_of_a_folder_is_refused_and_one_into_the_blobs_of_a_cache_is_not(name, tmp_path):
    make, read = LINKED[name]
    folder = tmp_path / "models--a--b" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    make(folder)
    blob = tmp_path / "models--a--b" / "blobs" / "4567"
    blob.parent.mkdir()
    os.rename(folder / name, blob)
    (folder / name).symlink_to(os.path.relpath(blob, (folder / name).parent))
    read(folder)
    outside = tmp_path / "secret"
    os.rename(blob, outside)
    (folder / name).unlink()
    (folder / name).symlink_to(outside)
    assert "found a link out of its folder" in refused(read, folder)


def test_a_description_of_a_sentence_encoder_without_its_folder_is_refused(tmp_path):
    readers.make_sentence(tmp_path)
    (tmp_path / "1_Pooling/config.json").unlink()
    assert "1_Pooling/config.json" in refused(sentence.read, tmp_path)
    modules = [{"type": "m.Transformer"}, {"type": "m.Pooling", "path": "a\0b"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert "found the path 'a\\x00b'" in refused(sentence.read, tmp_path)


def test_numbers_of_a_rotary_table_have_a_size(tmp_path):
    readers.make_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    factors = {"short_factor": [10**400], "long_factor": [float("inf")], "type": "longrope"}
    config |= {"architectures": ["Phi3ForCausalLM"], "rope_scaling": factors, "original_max_position_embeddings": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "short_factor is [1000" in refused(readers.read_model, tmp_path)


# Vocabularies


def replace(old: str, new: str) -> dict:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def sequence(*steps: dict, kind: str = "normalizers") -> dict:
    return {"type": "Sequence", kind: list(steps)}


def charsmap(longest: int) -> str:
    return base64.b64encode(struct.pack("<I", 4) + bytes(4) + b"x" * longest + b"\0").decode()


BOMBS = {
    "doubled forty times": {"normalizer": sequence(*[replace("a", "aa")] * 40)},
    "doubled in boxes": {
        "normalizer": sequence(sequence(*[replace("a", "aa")] * 8), sequence(*[replace("a", "aa")] * 8))
    },
    "a page for a letter": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap(5000)}},
    "a page before a text, again": {"normalizer": sequence(*[{"type": "Prepend", "prepend": "x" * 99}] * 2)},
    "grown when it is read": {"decoder": sequence(*[replace("a", "aaaa")] * 20, kind="decoders")},
    "a far token": {"model": {"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []}},
    "a far special token": {"added_tokens": [{"id": 2**31, "content": "x", "special": True}]},
    "a token below zero": {"model": {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}},
    "another kind of model": {"model": {"type": "posix.system", "vocab": {}}},
    "no model": {"model": [1]},
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_vocabulary_that_would_fill_the_memory_is_refused(name, tmp_path):
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": [], **BOMBS[name]}))
    assert "expected a tokenizer.json" in refused(load_tokenizer, tmp_path)


def test_a_file_longer_than_any_vocabulary_is_not_read(tmp_path, monkeypatch):
    for module in ("tokenizer_hf", "tokenizer_sentencepiece"):
        monkeypatch.setattr(f"pretrain.data.{module}.LARGEST_FILE", 1000)
    for name in ("tokenizer.json", "tokenizer.model"):
        (tmp_path / name).write_bytes(b" " * 1001)
        assert "copy it anew" in refused(load_tokenizer, tmp_path / name)


def test_a_sentencepiece_model_that_grows_texts_is_refused(tmp_path):
    readers.make_sentencepiece(tmp_path)
    path = tmp_path / "tokenizer.model"
    values = json.loads(readers.unseal_proto(path.read_bytes()))
    for change in ({"precompiledCharsmap": charsmap(5000)}, {"precompiledCharsmap": charsmap(5)}):
        values["normalizerSpec"] = {**values["normalizerSpec"], **change}
        path.write_bytes(readers.seal_proto(json.dumps(values).encode()))
        assert "found no sentencepiece model" in refused(load_tokenizer, path)
    path.write_bytes(b"")
    assert "found no sentencepiece model" in refused(load_tokenizer, path)


def test_a_text_that_a_vocabulary_cannot_spell_is_told(tmp_path):
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": []}))
    tokenizer = load_tokenizer(tmp_path)
    assert "the tokenizer cannot encode a text (WordLevel error" in refused(tokenizer.encode, "b")


@pytest.mark.parametrize("said", [[1], {"eos_token": 5}, {"eos_token": {"content": ["x"]}}])
def test_a_role_is_a_text(said, tmp_path):
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    assert "tokenizer_config.json" in refused(load_tokenizer, tmp_path)


def test_what_a_gguf_file_calls_an_architecture_may_be_anything(tmp_path):
    file = gguf_file.File({"general.architecture": [1, 2]}, {})
    assert "general.architecture is [1, 2]" in refused(gguf.load, file, tmp_path)


# All


def test_what_a_file_says_is_one_line_without_control_characters():
    error = UserError("a\x1b[2J\nb\u2028\ud800", "x" * 10**6)
    assert error.problems[0] == "a\\x1b[2J\\nb\\u2028\\ud800"
    assert len(error.problems[1]) < errors.LONGEST + 10


def test_json_is_text_of_bounded_depth_with_every_key_once():
    assert untrusted.loads(b'{"a": [1, {"b": "\\ud83d\\ude00"}]}') == {"a": [1, {"b": "\U0001f600"}]}
    deep = untrusted.DEEPEST
    untrusted.loads("[" * deep + "]" * deep)
    for text in (
        "[" * (deep + 1) + "]" * (deep + 1),
        "[" * 10**6,
        "9" * 5000,
        b"\xff",
        '"\\ud800"',
        '{"a": 1, "a": 1}',
    ):
        with pytest.raises(ValueError, match=r"."):
            untrusted.loads(text)


FORBIDDEN = {
    *("pickle.load", "pickle.loads", "torch.load", "joblib.load", "yaml.load", "eval", "exec", "os.system"),
    *("zipfile.ZipFile", "tarfile.open", "shutil.unpack_archive", "marshal.loads", "shelve.open"),
}


def test_no_reader_can_run_or_unpack_what_a_file_says():
    """`dill.loads` and `exec_module` take what our own process or the user's command line named."""
    found = []
    for path in files(*FLOORS):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node.func)}")
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
                found += [f"{path.relative_to(ROOT)}: {node.arg}"] * (ast.unparse(node.value) != "False")
    assert found == []
