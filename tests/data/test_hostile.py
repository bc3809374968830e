"""What a user reads when the input is wrong: one line for each problem, found, expected, do."""

import gzip
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import zstandard

from pretrain.data.config import (
    CorpusConfig,
    DataConfig,
    JsonLines,
    Parquet,
    TextFiles,
    TokenizerFile,
    TrainSentencePiece,
)
from pretrain.data.corpus import prepare_if_needed
from pretrain.data.pack import Packed
from pretrain.data.pipeline import Pipeline
from pretrain.data.tokenizer import load_tokenizer
from pretrain.data.windows import Split
from pretrain.data.write import prepare
from pretrain.errors import UserError, check
from tests.data.conftest import corpus_of

GOOD = b'{"text": "good"}\n'
ZST = zstandard.compress(os.urandom(3000))


def jsonl(data: bytes, suffix=".jsonl", **changes):
    return lambda d: (d / f"a{suffix}").write_bytes(data) and JsonLines(paths=(f"{d}/a{suffix}",), **changes)


def text(data: bytes, suffix=".txt", **changes):
    return lambda d: (d / f"a{suffix}").write_bytes(data) and TextFiles(paths=(f"{d}/a{suffix}",), **changes)


def parquet(**columns):
    def build(d):
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table(columns), d / "a.parquet")
        return Parquet(paths=(f"{d}/a.parquet",))

    return build


SOURCES = {
    "missing file": (
        lambda d: TextFiles(paths=(f"{d}/no.txt",)),
        "found nothing at D/no.txt, expected a file, folder or glob; correct the path",
    ),
    "pattern without a match": (
        lambda d: TextFiles(paths=(f"{d}/*.no",)),
        "found no file that matches D/*.no, expected at least one; correct the pattern",
    ),
    "folder without a file of the kind": (
        lambda d: JsonLines(paths=(str(d),)),
        "found no .jsonl or .jsonl.gz or .jsonl.zst file in D, expected at least one; name another folder",
    ),
    "nothing but empty documents": (
        jsonl(b'\n{"text": ""}\n'),
        "found no text for training in 1 source files, expected some; name other files",
    ),
    "broken line": (
        jsonl(GOOD + b'{"text": \n'),
        "D/a.jsonl line 2: found broken JSON (Expecting value: line 2 column 1 (char 10)), expected one object; "
        "repair the line",
    ),
    "lists without end": (
        jsonl(b"[" * 200_000),
        "D/a.jsonl line 1: found broken JSON (nested too deeply), expected one object; repair the line",
    ),
    "line that is no object": (
        jsonl(b"[1]"),
        "D/a.jsonl line 1: found a JSON list, expected an object with 'text'; repair the line",
    ),
    "missing field": (
        jsonl(GOOD + b'{"body": "x", "id": 1}\n'),
        "D/a.jsonl line 2: found fields 'body', 'id', expected text in 'text'; "
        "set the source's field or repair the line",
    ),
    "field that is no text": (
        jsonl(b'{"text": 5}'),
        "D/a.jsonl line 1: found a int, expected text in 'text'; set the source's field or repair the line",
    ),
    "line that is too long": (
        jsonl(b'{"text": "' + b"x" * 100 + b'"}', max_document_bytes=50),
        "D/a.jsonl line 1: found more than 50 bytes in one document, expected at most max_document_bytes; "
        "raise it or split the document",
    ),
    "text that is too long": (
        text(b"x" * 51, max_document_bytes=50),
        "D/a.txt: found more than 50 bytes in one document, expected at most max_document_bytes; "
        "raise it or split the document",
    ),
    "invalid UTF-8 under the error policy": (
        jsonl(GOOD + b'{"text": "a\xff"}\n', invalid_text="error"),
        "D/a.jsonl line 2: found invalid Unicode at offset 1, expected UTF-8; repair it or set invalid_text to "
        "replace or skip",
    ),
    "gzip cut off": (
        jsonl(gzip.compress(GOOD * 3)[:-9], ".jsonl.gz"),
        "D/a.jsonl.gz line 4: found the end of the file inside compressed data, expected a whole file; copy it anew",
    ),
    "not gzip": (
        text(b"plain", ".txt.gz"),
        "D/a.txt.gz: found damaged compressed data (Not a gzipped file (b'pl')), expected .gz or .zst; copy it anew",
    ),
    "zstandard cut off": (
        text(ZST[:-9], ".txt.zst"),
        "D/a.txt.zst: found the end of the file inside compressed data, expected a whole file; copy it anew",
    ),
    "not zstandard": (
        text(b"plain text", ".txt.zst"),
        "D/a.txt.zst: found damaged compressed data (zstd decompressor error: Unknown frame descriptor), "
        "expected .gz or .zst; copy it anew",
    ),
    "parquet without the column": (
        parquet(body=["x"], n=[1]),
        "D/a.parquet: found columns body (string), n (int64), expected text in 'text'; set the source's column",
    ),
    "not parquet": (
        lambda d: (d / "a.parquet").write_bytes(b"plain") and Parquet(paths=(f"{d}/a.parquet",)),
        "D/a.parquet: found damaged parquet (Parquet file size is 5 bytes, smaller than the minimum file footer "
        "(8 bytes)), expected a whole file; copy it anew",
    ),
}


def message(error, folder) -> str:
    return str(error.value).replace(str(folder), "D")


@pytest.mark.parametrize("name", SOURCES)
def test_a_bad_source_is_named_with_its_place(name, tmp_path, data, opened):
    build, expected = SOURCES[name]
    corpus = CorpusConfig(source=build(tmp_path), tokenizer=TokenizerFile(path=f"{data.path}/tokenizer"))
    with pytest.raises(UserError) as error:
        prepare(corpus, tmp_path / "out")
    assert message(error, tmp_path) == expected
    assert not (tmp_path / "out" / "manifest.json").exists()


def broken_json(d):
    (d / "tokenizer.json").write_text("{")


def random_model(d):
    (d / "x.model").write_bytes(b"\x01\x02random")


TOKENIZERS = {
    "nothing there": (
        lambda d: d / "x",
        "found nothing at D/x, expected a tokenizer file or folder; correct the path",
    ),
    "empty folder": (
        lambda d: None,
        "found no tokenizer in D, expected tokenizer.json or a .model file; name another folder",
    ),
    "no model": (random_model, "found no sentencepiece model in D/x.model, expected one; copy it anew"),
    "broken json": (
        broken_json,
        "found no tokenizer in D/tokenizer.json (Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1)), expected a tokenizer.json; copy it anew",
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_bad_tokenizer_is_named(name, tmp_path):
    build, expected = TOKENIZERS[name]
    with pytest.raises(UserError) as error:
        load_tokenizer(build(tmp_path) or tmp_path)
    assert message(error, tmp_path) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (
            30_000,
            "found too little text for tokenizer.vocab_size=30000, expected at most N; lower it or add text",
        ),
        (
            400,
            "found tokenizer.vocab_size=400, expected at least N for this text; raise it or lower character_coverage",
        ),
    ],
)
def test_a_vocabulary_that_does_not_fit_the_text_says_what_would(size, expected, tmp_path):
    (tmp_path / "a.txt").write_text("some text " + "".join(map(chr, range(0x4E00, 0x4E00 + 300))))
    config = TrainSentencePiece(vocab_size=size, character_coverage=1.0)
    corpus = CorpusConfig(source=TextFiles(paths=(f"{tmp_path}/a.txt",)), tokenizer=config, validation_fraction=0)
    with pytest.raises(UserError) as error:
        prepare(corpus, tmp_path / "out")
    assert re.sub(r"at (most|least) \d+", r"at \1 N", str(error.value)) == expected


@pytest.fixture
def prepared(data, opened, tmp_path) -> Path:
    shutil.copytree(data.path, tmp_path / "c")
    return tmp_path / "c"


def shorten(folder):
    path = folder / "train-00000.array_record"
    path.write_bytes(path.read_bytes()[:-100])


def damage(folder):
    path = folder / "train-00000.array_record"
    path.write_bytes(b"\0" * path.stat().st_size)


def other_version(folder):
    (folder / "manifest.json").write_text(json.dumps({"version": 9}))


REPAIR = "restore it or delete this folder and prepare anew"
FOLDERS = {
    "no manifest": (
        lambda d: (d / "manifest.json").unlink(),
        "found no manifest.json in D, expected a prepared corpus; run pretrain data prepare",
    ),
    "broken manifest": (
        lambda d: (d / "manifest.json").write_text("{"),
        "found a damaged D/manifest.json, expected JSON; restore it or prepare into another folder",
    ),
    "another version": (
        other_version,
        "found version 9 in D/manifest.json, expected 3; prepare the corpus anew",
    ),
    "missing shard": (
        lambda d: (d / "train-00000.array_record").unlink(),
        f"found no D/train-00000.array_record, expected SIZE bytes; {REPAIR}",
    ),
    "shortened shard": (
        shorten,
        f"found SIZE bytes in D/train-00000.array_record, expected SIZE; {REPAIR}",
    ),
    "damaged shard": (damage, "found damage in D/train-00000.array_record (REASON), expected a record; " + REPAIR),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_damaged_folder_is_named_with_the_file(name, prepared):
    act, expected = FOLDERS[name]
    act(prepared)
    with pytest.raises(UserError) as error:
        list(Pipeline(Split(prepared, "train"), Packed(50), 4).iterate(0, stop_step=20, read_threads=0))
    found = re.sub(r"\d{3,}( bytes|;)", r"SIZE\1", message(error, prepared))
    assert re.sub(r"\(.*\)", "(REASON)", found) == expected


def test_another_config_is_refused_and_nothing_is_overwritten(texts, prepared):
    before = {p: p.read_bytes() for p in prepared.rglob("*") if p.is_file()}
    other = corpus_of(texts[0], record_tokens=128, tokenizer=TrainSentencePiece(vocab_size=500, sample_bytes=200_000))
    for prepares in (True, False):
        with pytest.raises(UserError) as error:
            prepare_if_needed(DataConfig(corpus=other, path=str(prepared)), "unused", prepare=prepares)
        assert message(error, prepared).split("\n") == [
            "D holds a corpus with corpus.record_tokens=64, expected 128; "
            "restore the value or prepare into another folder",
            "D holds a corpus with corpus.tokenizer.vocab_size=420, expected 500; "
            "restore the value or prepare into another folder",
        ]
    assert {p: p.read_bytes() for p in prepared.rglob("*") if p.is_file()} == before


def test_a_source_that_changed_after_a_kill_is_refused(texts, tmp_path, prepared):
    shutil.copytree(texts[0], tmp_path / "texts")
    corpus = corpus_of(tmp_path / "texts")
    prepare(corpus, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    with (tmp_path / "texts" / "03.jsonl").open("ab") as f:
        f.write(GOOD)
    with pytest.raises(UserError) as error:
        prepare(corpus, tmp_path / "out")
    assert message(error, tmp_path) == (
        "found source files changed since D/out was begun (first: D/texts/03.jsonl), expected the same; "
        "restore them or prepare into another folder"
    )


def test_another_tokenizer_is_refused(data, prepared, tmp_path):
    from pretrain.data.tokenizer_sentencepiece import train_sentencepiece

    train_sentencepiece([Path(__file__).read_text()], TrainSentencePiece(vocab_size=420), prepared / "tokenizer")
    with pytest.raises(UserError, match=r"found tokenizer .*, expected .*, with which .* was prepared; restore"):
        prepare_if_needed(DataConfig(corpus=data.corpus, path=str(prepared)), "unused")


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    import tokenizers

    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("a")
    corpus = CorpusConfig(source=TextFiles(paths=(f"{tmp_path}/a.txt",)), tokenizer=TokenizerFile(path=str(tmp_path)))
    with pytest.raises(UserError) as error:
        prepare(corpus, tmp_path / "out")
    assert str(error.value) == (
        "found a tokenizer without eos, expected one for corpus.add_eos=True; set it to False or use another tokenizer"
    )


def test_two_processes_cannot_prepare_one_folder(texts, tmp_path):
    import fcntl

    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="found another process that prepares"):
            prepare(corpus_of(texts[0]), tmp_path)


def test_all_wrong_fields_are_reported_at_once():
    source = JsonLines(paths=(), field="", max_document_bytes=0)
    tokenizer = TrainSentencePiece(vocab_size=10, special_tokens=("a", "a"))
    corpus = CorpusConfig(source=source, tokenizer=tokenizer, validation_fraction=1.0, record_tokens=1)
    with pytest.raises(UserError) as error:
        check(DataConfig(corpus=corpus, sequence_length=0, prefetch=0), "data")
    assert [p.split("=")[0] for p in error.value.problems] == [
        "data.sequence_length",
        "data.prefetch",
        "data.corpus.validation_fraction",
        "data.corpus.record_tokens",
        "data.corpus.source.paths",
        "data.corpus.source.max_document_bytes",
        "data.corpus.source.field",
        "data.corpus.tokenizer.vocab_size",
        "data.corpus.tokenizer.special_tokens",
    ]


def test_the_config_imports_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys, pretrain.data.config; "
        "sys.exit(bool({'numpy', 'jax', 'grain', 'sentencepiece', 'tokenizers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
