"""The corpus that a recipe leaves, whatever its workers and however often it was killed."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.data.config import JsonLines, JsonPairs
from pretrain.data.manifest import read_json, write_json
from pretrain.data.recipe.config import (
    Decontaminate,
    ExactDuplicates,
    GopherQuality,
    Language,
    NearDuplicates,
    Normalise,
    Scrub,
)
from pretrain.data.sources import read_document
from pretrain.data.windows import Split
from pretrain.data.write import prepare
from pretrain.errors import UserError, check
from tests.data.conftest import corpus_of
from tests.data.test_write import content

pytest.importorskip("datatrove")
REPOSITORY = Path(__file__).parents[2]
SUBJECTS = ("ship", "river", "garden", "letter", "engine", "village", "doctor", "winter", "market", "bridge", "window")
VERBS = ("crossed", "painted", "watched", "carried", "followed", "remembered", "answered", "visited", "repaired")
PLACES = ("hill", "harbour", "library", "station", "valley", "kitchen", "museum", "island", "theatre", "workshop")
QUESTION = "Which of the seven northern rivers freezes first in a year without any autumn rain at all"
PROGRAM = """
import sys
from pathlib import Path
from pretrain.data.write import prepare
from tests.data.test_recipe import corpus
if __name__ == "__main__":
    prepare(corpus(Path(sys.argv[1])), Path(sys.argv[2]), workers=int(sys.argv[3]))
"""


def prose(seed: int, sentences: int = 12) -> str:
    r = random.Random(seed)
    return " ".join(
        f"The {r.choice(SUBJECTS)} that the {r.choice(SUBJECTS)} {r.choice(VERBS)} was {r.randrange(2, 99)} miles from "
        f"the {r.choice(PLACES)}, and nobody {r.choice(VERBS)} it with the {r.choice(SUBJECTS)}."
        for _ in range(sentences)
    )


def steps(evaluation: Path) -> tuple:
    return (
        Normalise(),
        ExactDuplicates(),
        GopherQuality(min_stop_words=0),
        Language(languages=("en",)),
        NearDuplicates(),
        Decontaminate(paths=(str(evaluation),)),
        Scrub(),
    )


def corpus(folder: Path):
    source = JsonLines(paths=(str(folder / "texts"),), invalid_text="skip")
    return corpus_of(folder, source=source, steps=steps(folder / "questions.jsonl"), unit_bytes=15_000)


@pytest.fixture(scope="module")
def dirty(tmp_path_factory) -> Path:
    """40 good documents, and among them some of every kind that a step drops, over 5 files."""
    folder = tmp_path_factory.mktemp("dirty")
    good = [prose(i) for i in range(40)]
    near = [text.replace("nobody", "somebody", 1) for text in good[:3]]
    german = ["Der alte Mann ging jeden Morgen durch den Wald und dachte an seine Kinder, die er lange nicht sah. " * 8]
    asked = f"{prose(99)} {QUESTION}?"
    bad = [good[0], good[0], good[5], "too short", asked, *near, *german, "", "\u0000 \u0001"]
    mail = [prose(200) + " Write to jane.doe@site.co.uk or call 8.8.8.8 today."]
    lines = [json.dumps({"text": text}).encode() for text in good + bad + mail] + [b'{"text": "a\xff"}']
    random.Random(0).shuffle(lines)
    (folder / "texts").mkdir()
    for number in range(5):
        (folder / f"texts/{number}.jsonl").write_bytes(b"\n".join(lines[number::5]) + b"\n")
    (folder / "questions.jsonl").write_text(json.dumps({"question": QUESTION, "answer": 7}) + "\n")
    return folder


@pytest.fixture(scope="module")
def cleaned(dirty, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cleaned") / "c"
    prepare(corpus(dirty), folder, workers=1)
    return folder


def rows(folder: Path) -> dict[str, dict]:
    return {row["step"]: row for row in json.loads((folder / "manifest.json").read_text())["funnel"]}


def test_every_document_is_kept_or_dropped_with_a_reason(cleaned):
    table = rows(cleaned)
    assert list(table) == ["read", *(type(s).__name__ for s in steps(Path())), "tokenize"]
    before = table["read"]["documents_in"]
    for row in table.values():
        assert row["documents_in"] == before
        before = row["documents"]
        assert row["documents_in"] == row["documents"] + sum(d["documents"] for d in row["dropped"].values())
    dropped = {name: {k: d["documents"] for k, d in row["dropped"].items()} for name, row in table.items()}
    assert dropped == {
        "read": {"empty": 1, "invalid text": 1},
        "Normalise": {"empty": 1},
        "ExactDuplicates": {"duplicate": 3},
        "Language": {"other language": 1},
        "GopherQuality": {"gopher_short_doc": 1},
        "NearDuplicates": {"duplicate": 3},
        "Decontaminate": {"contaminated": 1},
        "Scrub": {},
        "tokenize": {},
    }
    assert before == 41
    manifest = json.loads((cleaned / "manifest.json").read_text())
    assert manifest["dropped"]["Language: other language"] == 1
    assert sum(manifest["dropped"].values()) == table["read"]["documents_in"] - 41


def test_what_stays_leads_back_to_its_source_line(dirty, cleaned):
    found = []
    for name in ("train", "validation"):
        split = Split(cleaned, name)
        for number, shard in enumerate(split.shards):
            sources = json.loads((cleaned / f"{shard.name}.json").read_text())["sources"]
            for i in range(shard.documents):
                file, row, *_ = split.document(number, i)
                file = file if isinstance(file, str) else sources[file]
                found.append(read_document(corpus(dirty).source, file, row).text)
    assert len(found) == len(set(found)) == 41
    kept = [text for text in map(prose, range(40)) if text in found]
    assert len(kept) >= 37  # of three, the near duplicate may be the one that stays


def test_the_bytes_do_not_depend_on_the_number_of_workers(dirty, cleaned, tmp_path):
    seen = []
    (tmp_path / "c/clean").mkdir(parents=True)
    (tmp_path / "c/clean/00000.jsonl.zst.tmp-1").write_bytes(b"left by a kill")
    prepare(corpus(dirty), tmp_path / "c", workers=3, progress=seen.append)
    assert content(tmp_path / "c") == content(cleaned)
    jobs = {p.job.split("-")[-1] for p in seen}
    assert jobs == {"documents", "hashes", "compare", "signatures", "pairs", "clusters", "tokenize"}


def test_kill_9_at_random_moments_gives_the_same_bytes(dirty, cleaned, tmp_path):
    def start():
        (tmp_path / "program.py").write_text(PROGRAM)
        command = [sys.executable, str(tmp_path / "program.py"), str(dirty), str(tmp_path / "c"), "2"]
        return subprocess.Popen(command, cwd=REPOSITORY, env={"PYTHONPATH": str(REPOSITORY), "PATH": ""})

    logs = tmp_path / "c/clean/work/logs"
    for wanted in (1, 4, 7):  # jobs begun
        process = start()
        while process.poll() is None and len(list(logs.glob("*"))) < wanted:
            time.sleep(0.005)
        time.sleep(0.05 * wanted)
        process.kill()
        process.wait()
    while process.returncode:
        process = start()
        process.wait(120)
    assert content(tmp_path / "c") == content(cleaned)


def test_a_crash_at_any_rename_neither_loses_nor_repeats(dirty, cleaned, tmp_path, monkeypatch):
    from pretrain.data import manifest, records, write
    from pretrain.data.recipe import passages, shards

    class Crash(BaseException):
        pass

    real, folder, crashes = records.publish, tmp_path / "c", 0
    while not (folder / "manifest.json").is_file():
        calls = iter(range(10_000))

        def publish(temporary, path, calls=calls, allowed=3 + 5 * (crashes % 4)):
            if next(calls) >= allowed:
                raise Crash
            real(temporary, path)

        for module in (records, manifest, write, passages, shards):
            monkeypatch.setattr(module, "publish", publish)
        try:
            prepare(corpus(dirty), folder)
        except Crash:
            crashes += 1
            assert crashes < 100
    assert crashes > 2
    assert content(folder) == content(cleaned)


def test_an_evaluation_set_that_changed_is_refused(dirty, cleaned, tmp_path):
    (tmp_path / "c").mkdir()
    plan = read_json(cleaned / "plan.json")
    plan["files"][-1][2] += 1
    write_json(tmp_path / "c/plan.json", plan)
    with pytest.raises(UserError, match=r"source files changed since .* \(first: .*questions.jsonl\)"):
        prepare(corpus(dirty), tmp_path / "c")


def test_pairs_are_not_cleaned(tmp_path):
    source = JsonPairs(paths=("a.jsonl",))
    with pytest.raises(UserError, match="steps: found 1 for a source of pairs, expected none"):
        check(corpus_of(tmp_path, source=source, steps=(Normalise(),)))


def test_a_unit_of_which_nothing_stays_is_empty_in_every_phase(tmp_path):
    texts = {"a": ["short"], "b": [prose(i) for i in range(12)] * 2, "c": [""], "d": ["four words are here"]}
    (tmp_path / "texts").mkdir()
    for name, part in texts.items():
        (tmp_path / f"texts/{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    source = JsonLines(paths=(str(tmp_path / "texts"),))
    recipe = (GopherQuality(), ExactDuplicates(), NearDuplicates(), ExactDuplicates())
    prepare(corpus_of(tmp_path, source=source, steps=recipe, unit_bytes=1), tmp_path / "c")
    funnel = json.loads((tmp_path / "c/manifest.json").read_text())["funnel"]
    assert [row["documents"] for row in funnel] == [26, 24, 12, 12, 12, 12]
