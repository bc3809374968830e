import json

import pytest
import tokenizers

from pretrain.cli import main
from pretrain.data.config import TrainSentencePiece
from pretrain.data.tokenizer import load_tokenizer
from pretrain.data.tokenizer_report import measure, read_texts
from pretrain.data.tokenizer_sentencepiece import train_sentencepiece

TEXT = "the stream of tokens is cut every window, 10 rows in 22 windows\n" * 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Paths of a sentencepiece model, a byte-level one of Hugging Face and one that knows ten words."""
    folder = tmp_path_factory.mktemp("t")
    train_sentencepiece([TEXT], TrainSentencePiece(vocab_size=420), folder / "sp")
    model = tokenizers.ByteLevelBPETokenizer()
    model.train_from_iterator([TEXT], vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "the": 1, "stream": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    for name, tokenizer in (("hf", model), ("words", words)):
        (folder / name).mkdir()
        tokenizer.save(str(folder / name / "tokenizer.json"))
    return folder


def test_bytes_and_unknown_words_are_counted(made):
    known = measure(load_tokenizer(made / "sp"), [TEXT])
    assert known["byte_tokens"] == known["unk"] == 0
    assert known["exact"] == 1
    assert known["bytes_per_token"] == len(TEXT) / known["tokens"]
    assert known["tokens_per_word"] == known["tokens"] / len(TEXT.split())
    for name in ("sp", "hf"):
        foreign = measure(load_tokenizer(made / name), ["東京", "the"])
        assert foreign["byte_tokens"] == 6 / foreign["tokens"]
        assert foreign["exact"] == 1
    assert measure(load_tokenizer(made / "words"), ["the stream flows"])["unk"] == pytest.approx(1 / 3)
    assert measure(load_tokenizer(made / "words"), ["the stream flows", "the"])["exact"] == 0.5


def test_no_more_is_read_than_asked_for(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "é" * 50}) + "\n" for _ in range(9)))
    assert sum(len(t.encode()) for t in read_texts(str(tmp_path / "a.jsonl"), 251)) == 250


def test_the_report_has_a_line_for_each_file_and_tokenizer(made, tmp_path, capsys):
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    words = ["--tokenizers", str(made / "sp"), str(made / "hf"), "--files", str(tmp_path / "a.txt")]
    assert main(["tokenizer", "report", *words, str(tmp_path / "b.jsonl"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["report"]
    assert [row["tokens"] for row in rows[:2]] == [row["tokens"] for row in rows[2:]]
    assert all(row["mb_per_cpu_second"] > 0 for row in rows)
    assert main(["tokenizer", "report", *words]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    (tmp_path / "empty.txt").write_text("")
    assert main(["tokenizer", "report", *words, str(tmp_path / "empty.txt")]) == 2
