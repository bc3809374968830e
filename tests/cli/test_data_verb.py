import json
import re
import shutil

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


def test_find_names_every_step_whose_batch_shows_the_passage(result):
    passage = "jumps over the lazy"
    found = result("data", "inspect", "begun", "--find", passage, "--until-step", "9", "--limit", "99", "--json")
    assert not found["more"]
    assert (
        len(
            result("data", "inspect", "begun", "--find", passage, "--until-step", "9", "--limit", "2", "--json")[
                "passages"
            ]
        )
        == 2
    )
    seen = {(s["step"], s["row"]) for p in found["passages"] for s in p["seen"] if s["tokens"] == p["tokens"]}
    shows = set()
    for step in range(1, 10):
        for s in result("data", "inspect", "begun", "--step", str(step), "--json")["segments"]:
            if passage in s["text"]:
                shows.add((step, s["row"]))
    assert seen == shows
    assert shows
    told = result("data", "inspect", "begun", "--find", "no such words anywhere", "--until-step", "9")
    assert told == "found in no document of the train split\n"


def test_one_of_step_and_passage_is_named(world, capsys):
    for words in ([], ["--step", "1", "--find", "a"]):
        assert main(["data", "inspect", "begun", *words]) == 2
        assert "found both or none of --step and --find" in capsys.readouterr().err
    assert main(["data", "inspect", "begun", "--find", "a", "--limit", "0", "--until-step", "1"]) == 2


@pytest.fixture
def logged(world, tmp_path):
    """A run of nine steps that wrote down what it saw."""
    from pretrain.cli.data import pipeline_of
    from pretrain.data.pipeline import batch_hash

    shutil.copytree("runs/begun", tmp_path / "logged")
    pipeline, _ = pipeline_of("begun")
    lines = [{"step": s, "batch_hash": batch_hash(pipeline.rows(s - 1))} for s in range(1, 10)]
    (tmp_path / "logged" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "logged" / "events.jsonl").write_text('{"kind": "start", "step": 0, "log_every": 1}\n')
    return tmp_path / "logged"


def test_audit_counts_what_it_proved(result, logged):
    facts = result("data", "audit", str(logged), "--json")
    assert facts["steps"] == facts["steps_checked"] == 9
    assert facts["samples"] == 9 * tiny().batch.rows
    assert facts["lost"] == facts["repeated"] == facts["different"] == 0
    assert result("data", "audit", str(logged), "--sample", "2", "--steps", "2:8", "--json")["steps_checked"] == 2


def test_audit_names_the_first_of_what_is_wrong_and_exits_with_3(logged, capsys):
    lines = (logged / "metrics.jsonl").read_text().splitlines()
    lines[4] = json.dumps({"step": 5, "batch_hash": "0"})
    (logged / "metrics.jsonl").write_text("\n".join([*lines[:6], *lines[7:], lines[1]]) + "\n")
    assert main(["data", "audit", str(logged)]) == 3
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("lost: found no line of step 7")
    assert told[1].startswith("repeated: found step 2 again behind step 9")
    assert told[2].startswith("different: found batch_hash 0 at step 5")
    for steps in ("0:3", "3:2", "1:99", "x"):
        assert main(["data", "audit", str(logged), "--steps", steps]) == 2
