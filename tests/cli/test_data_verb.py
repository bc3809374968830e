import json
import re

import pytest

from pretrain.cli import main
from pretrain.data.tokenizer import load_tokenizer
from tests.cli.conftest import tiny


@pytest.fixture
def result(world, capsys):
    """Runs a command in the world that must succeed; what it printed, decoded when it is JSON."""

    def run(*words: str):
        assert main(list(words)) == 0
        out, _ = capsys.readouterr()
        return json.loads(out) if "--json" in words else out

    return run


def test_preparing_again_gives_the_numbers_of_the_first_time(result):
    first = result("data", "show", "begun", "--json")
    assert result("data", "prepare", "my/good.py", "--run", "runs/begun", "--json") == first
    assert first["train_documents"] + first["validation_documents"] == 60


def test_a_corpus_is_found_by_run_by_name_and_by_folder(result):
    by_name = result("data", "show", "begun")
    assert result("data", "show", "runs/begun") == result("data", "show", "runs/begun/data") == by_name
    assert re.search(r"^vocab_size +420$", by_name, re.MULTILINE)


def test_inspect_shows_every_document_of_the_batch_where_it_came_from(result, world):
    texts = [json.loads(line)["text"] for line in (world / "texts/good.jsonl").read_text().splitlines()]
    tokenizer = load_tokenizer("runs/begun/data/tokenizer")
    segments = result("data", "inspect", "begun", "--step", "3", "--json")["segments"]
    rows = {row: sum(s["tokens"] for s in segments if s["row"] == row) for row in range(tiny().batch.rows)}
    assert set(rows.values()) == {tiny().data.sequence_length}
    for s in segments:
        assert s["file"] == "texts/good.jsonl"
        whole = tokenizer.encode(texts[s["file_row"]]) + [tokenizer.eos]
        assert s["text"] == tokenizer.decode(whole[s["offset"] : s["offset"] + s["tokens"]])


def test_inspect_of_a_row_is_that_row_of_the_batch(result):
    whole = result("data", "inspect", "begun", "--step", "3", "--json")["segments"]
    row = result("data", "inspect", "begun", "--step", "3", "--row", "2", "--json")["segments"]
    assert row == [s for s in whole if s["row"] == 2]
    out = result("data", "inspect", "begun", "--step", "3", "--row", "2")
    assert out.startswith("--- row 2 segment 1: ")
    assert row[0]["text"] in out


def test_step_counts_as_in_the_metrics(result):
    from pretrain.data.corpus import prepare_if_needed
    from pretrain.data.pack import Packed
    from pretrain.data.pipeline import Pipeline

    train, _, tokenizer = prepare_if_needed(tiny().data, "runs/begun/data", prepare=False)
    rows = Packed(tiny().data.sequence_length)
    first = Pipeline.from_config(train, rows, tiny().data, tiny().batch.rows).rows(0, slice(0, 1))["tokens"][0].tolist()
    segments = result("data", "inspect", "begun", "--step", "1", "--row", "0", "--json")["segments"]
    assert segments[0]["text"] == tokenizer.decode(first[: segments[0]["tokens"]])


def test_a_tokenizer_trained_alone_is_the_one_that_a_run_trains(result, tmp_path):
    facts = result("tokenizer", "train", "my/good.py", "--to", str(tmp_path / "t"), "--json")
    shown = result("tokenizer", "show", "begun", "--json")
    assert facts == {"folder": str(tmp_path / "t"), **shown}


def test_a_tokenizer_shows_what_it_makes_of_a_text(result):
    facts = result("tokenizer", "show", "runs/begun/data/tokenizer", "--text", "the fox é", "--json")
    assert load_tokenizer("runs/begun/data/tokenizer").decode(facts["ids"]) == "the fox é"
    assert len(facts["pieces"]) == len(facts["ids"])
