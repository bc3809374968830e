"""Each step against documents made for it, and against datatrove's own decision."""

import gzip
import json
import pickle
import random

import pytest

from pretrain.data.recipe.config import (
    C4,
    Decontaminate,
    ExactDuplicates,
    FineWeb,
    GopherQuality,
    GopherRepetition,
    Language,
    NearDuplicates,
    Normalise,
    Scrub,
    web,
)
from pretrain.errors import UserError, problems
from tests.data.test_recipe import QUESTION, prose

pytest.importorskip("datatrove")
from datatrove.data import Document
from datatrove.pipeline import filters

from pretrain.data.recipe.documents import Counted
from pretrain.data.recipe.passages import build_index
from pretrain.data.recipe.steps import _overlap, _streamed, phases
from pretrain.data.recipe.words import UnicodeWords

GOOD = """When the last ferry of the year leaves the island, those who stay have six months of quiet before them.
Most of the houses near the water are shut by then, and only the baker keeps a light in his window after dark.
He says that winter bread needs more time, because flour from the mainland comes damp and the oven draws badly in fog.
Children walk to school along the beach and collect whatever the storms have carried there during the night.
In one good week they found a wooden chair, eleven bottles and part of a piano that nobody has asked for since.
By March everybody is tired of fish, of cards, and of hearing how much better the summers used to be."""
LINES = "\n".join(prose(i, 2) for i in range(12))


def decide(step, *texts: str, index=None) -> list[str]:
    """What becomes of each text: itself or another, or why it was dropped."""
    out = []
    for text in texts:
        counted = Counted("step", pickle.loads(pickle.dumps(_streamed(step, index))))
        kept = list(counted.run(iter([Document(text=text, id="0")])))
        out.append(kept[0].text if kept else next(iter(counted.row["dropped"])))
    return out


DROPPED = {
    "gopher_short_doc": (GopherQuality(), "Only a few words, and that is that."),
    "gopher_long_doc": (GopherQuality(max_doc_words=60), GOOD),
    "gopher_below_avg_threshold": (GopherQuality(), "a b c the d " * 40),
    "gopher_above_avg_threshold": (GopherQuality(), "the incomprehensibilities with characteristically " * 40),
    "gopher_too_many_hashes": (GopherQuality(), LINES.replace(" the ", " # the ")),
    "gopher_too_many_ellipsis": (GopherQuality(), LINES.replace(" the ", " … the ")),
    "gopher_too_many_bullets": (GopherQuality(), "- " + LINES.replace("\n", "\n- ")),
    "gopher_too_many_end_ellipsis": (GopherQuality(max_symbol_word_ratio=1), LINES.replace("\n", "...\n") + "..."),
    "gopher_below_alpha_threshold": (GopherQuality(), LINES.replace(" the ", " 1234 5678 9012 ")),
    "gopher_enough_stop_words": (GopherQuality(), "rivers freeze slowly under heavy northern clouds " * 20),
    "dup_para_frac": (GopherRepetition(), "\n\n".join([prose(1), prose(1), prose(1)])),
    "dup_para_char_frac": (GopherRepetition(dup_para_frac=1), "\n\n".join([prose(1), prose(1), prose(1)])),
    "dup_line_frac": (GopherRepetition(), "\n".join([prose(1, 2)] * 3)),
    "dup_line_char_frac": (GopherRepetition(dup_line_frac=1), "\n".join([prose(1, 2)] * 3)),
    "top_2_gram": (GopherRepetition(), "good morning " * 60),
    "duplicated_5_n_grams": (GopherRepetition(), prose(3, 30) + " " + " ".join([prose(4, 3)] * 3)),
    "lorem_ipsum": (C4(), f"{LINES}\nHere stands lorem ipsum dolor sit amet."),
    "curly_bracket": (C4(), f"{LINES}\nfunction() {{ that stands in a line."),
    "too_few_sentences": (C4(), "One sentence is here. Another one is there."),
    "line_punct_ratio": (FineWeb(), LINES.replace(".", "")),
    "short_line_ratio": (FineWeb(), "\n".join(f"line {i}." for i in range(20))),
    "char_dup_ratio": (FineWeb(), f"{LINES}\n{LINES}"),
    "list_ratio": (FineWeb(), "\n".join(f"{'word' * 9}{i}." for i in range(9))),
    "empty": (Normalise(), "\x00 \x01\n"),
    "other language": (Language(languages=("en",)), "Der alte Mann ging jeden Morgen durch den dunklen Wald. " * 3),
}


@pytest.mark.parametrize("reason", DROPPED)
def test_a_document_made_for_a_rule_is_dropped_by_that_rule(reason):
    step, text = DROPPED[reason]
    assert decide(step, text) == [reason]


@pytest.mark.parametrize("step", [s for s in web("en") if not isinstance(s, ExactDuplicates | NearDuplicates)])
def test_good_prose_passes_every_step(step):
    assert decide(step, GOOD) == [GOOD]


@pytest.mark.parametrize("kind", ["C4", "GopherQuality", "GopherRepetition", "FineWeb"])
def test_the_rules_and_their_numbers_are_those_of_datatrove(kind):
    step = {"C4": C4(), "GopherQuality": GopherQuality(), "GopherRepetition": GopherRepetition(), "FineWeb": FineWeb()}
    theirs = {"C4": "C4QualityFilter", "FineWeb": "FineWebQualityFilter"}.get(kind, f"{kind}Filter")
    alone = getattr(filters, theirs)(language=UnicodeWords())
    for _, text in DROPPED.values():
        document = Document(text=text, id="0")
        verdict = alone.filter(document)
        assert decide(step[kind], text) == [verdict[1] if isinstance(verdict, tuple) else document.text]


def test_c4_takes_lines_that_are_no_sentences_out_of_a_document():
    rest = "Home | About\nThis site uses cookies for you.\nPlease enable javascript to go on.\nThis is known.[12]"
    assert decide(C4(), f"{LINES}\n{rest}") == [f"{LINES}\nThis is known."]


def test_text_is_normalised_but_code_keeps_its_shape():
    code = "def f(x):\n    if x:\n\n        return x\n"
    text = "scho\u0308n \r\nsch\u00c3\u00b6n\n\n\n\n\n\x08end  \n"
    assert decide(Normalise(), code, text) == [code.strip("\n"), "sch\u00f6n\nsch\u00f6n\n\n\nend"]
    assert decide(Normalise(repair=False), "sch\u00c3\u00b6n") == ["sch\u00c3\u00b6n"]
    assert decide(Normalise(form="NFKC"), "\ufb01ne") == ["fine"]


def test_addresses_are_scrubbed_the_same_way_wherever_they_stand():
    text = "Ask a.b@c.org or d@e.net at 8.8.8.8, not at 10.0.0.1."
    wanted = "Ask email@example.com or email@example.com at 192.0.2.1, not at 10.0.0.1."
    assert decide(Scrub(), text) == [wanted]
    assert decide(Scrub(email=None), "a.b@c.org 8.8.8.8") == ["a.b@c.org 192.0.2.1"]
    assert decide(Scrub(ip=None, email="X"), "a.b@c.org 8.8.8.8") == ["X 8.8.8.8"]
    assert decide(Scrub(only_public_ips=False), "10.0.0.1") == ["192.0.2.1"]


def test_a_run_of_words_of_an_evaluation_set_is_found_however_it_is_written(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"q": QUESTION, "choices": ["the long one", "no"]}) + "\n\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(" ".join(f"word{chr(97 + i)}" for i in range(12)).encode()))
    step = Decontaminate(paths=("-",))
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.txt.gz")]
    build_index(files, UnicodeWords(), _overlap(step), tmp_path / "index")
    texts = [
        f"{GOOD} {QUESTION.upper()}!",
        " ".join(QUESTION.split()[:11]),  # one word less than a run
        " ".join([*QUESTION.split()[-9:], "the", "long", "one"]),  # from the question into its answer
        " ".join(f"word{chr(97 + i)}" for i in range(12)),
    ]
    verdicts = decide(step, *texts, index=tmp_path / "index")
    assert verdicts == ["contaminated", texts[1], "contaminated", "contaminated"]


@pytest.mark.parametrize("code", ["en", "de"])
def test_a_language_is_told_from_others(code):
    texts = {
        "en": GOOD,
        "de": "Der alte Mann ging jeden Morgen durch den dunklen Wald und dachte an seine Kinder. " * 3,
    }
    kept = decide(Language(languages=(code,)), *texts.values())
    assert kept == [text if name == code else "other language" for name, text in texts.items()]
    assert decide(Language(languages=("de", "en")), *texts.values()) == list(texts.values())


def test_a_language_model_that_is_missing_or_none_is_an_error(tmp_path):
    with pytest.raises(
        UserError, match=r"found no file no.bin, expected a fastText language model, as lid.176.bin; copy"
    ):
        phases((Language(languages=("en",), model="no.bin"),), [], tmp_path, tmp_path)
    pytest.importorskip("fasttext")
    (tmp_path / "bad.bin").write_bytes(b"bad")
    with pytest.raises(
        UserError, match=r"found no fastText model in .*bad.bin, expected one, as lid.176.bin; copy it anew"
    ):
        decide(Language(languages=("en",), model=str(tmp_path / "bad.bin")), GOOD)


def test_a_fasttext_model_is_asked_when_it_is_given(tmp_path):
    fasttext = pytest.importorskip("fasttext")
    german = "der alte mann ging jeden morgen durch den wald und dachte an seine kinder"
    lines = [line for i in range(30) for line in (f"__label__en {prose(i, 1).lower()}", f"__label__de {german}")]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    model = fasttext.train_supervised(str(tmp_path / "lines.txt"), minn=2, maxn=4, epoch=60, thread=1, verbose=0)
    model.save_model(str(tmp_path / "lid.bin"))
    step = Language(languages=("en",), model=str(tmp_path / "lid.bin"))
    assert decide(step, prose(99, 1).lower(), german) == [prose(99, 1).lower(), "other language"]


def test_words_of_an_unknown_language_are_an_error(tmp_path):
    with pytest.raises(
        UserError, match=r"found words=\['xyz'\] .*, expected languages of datatrove; set words to None"
    ):
        phases((FineWeb(words="xyz"),), [], tmp_path, tmp_path)


def test_a_missing_evaluation_set_is_an_error(tmp_path):
    with pytest.raises(
        UserError, match=r"found no evaluation file at no\.jsonl, expected one or more; correct the path"
    ):
        phases((Decontaminate(paths=("no.jsonl",)),), [], tmp_path, tmp_path)


def test_words_are_runs_of_letters_and_sentences_end_with_their_marks():
    words = UnicodeWords()
    assert words.word_tokenize("Don't stop, 東京 naïve x_1!") == ["Don't", "stop", ",", "東京", "naïve", "x_1", "!"]
    assert words.sent_tokenize('He said "go." Then? Yes…\nNo') == ['He said "go."', "Then?", "Yes…", "No"]
    assert words.sent_tokenize("") == []
    assert pickle.loads(pickle.dumps(words)) == words
    assert len({words, UnicodeWords()}) == 1


def test_wrong_fields_are_reported_at_once():
    steps = (
        Normalise(form="NFD"),  # pyright: ignore[reportArgumentType]
        Language(languages=(), threshold=2),
        GopherQuality(min_doc_words=9, max_doc_words=8),
        NearDuplicates(buckets=0),
        Decontaminate(paths="a"),  # pyright: ignore[reportArgumentType]
    )
    found = [p.split(":")[0].split("=")[0] for p in problems(steps, "steps")]
    assert found == [
        "steps.0.form",
        "steps.1.languages",
        "steps.1.threshold",
        "steps.2.min_doc_words",
        "steps.3.expected n_grams, buckets and hashes_per_bucket of 1 or more",
        "steps.4.paths",
    ]


def test_every_number_of_a_quality_step_reaches_its_filter():
    for step in (C4(), GopherQuality(), GopherRepetition(), FineWeb()):
        built = vars(_streamed(step, None))
        stored = {"short_line_thr": "short_line_threshold"}
        for name, value in vars(step).items():
            if name != "words":
                found = built[stored.get(name, name)]
                assert found == (set(value) if isinstance(value, tuple) else value)
        assert isinstance(built["language"], UnicodeWords)


def test_quick_rules_of_repetition_judge_as_those_of_datatrove():
    from datatrove.data import Document
    from datatrove.pipeline.filters import GopherRepetitionFilter

    from pretrain.data.recipe.repetition import Repetition
    from pretrain.data.recipe.words import UnicodeWords

    ours, theirs = Repetition(language=UnicodeWords()), GopherRepetitionFilter(language=UnicodeWords())
    draw, verdicts = random.Random(3), set()
    for _ in range(400):
        vocabulary = [f"w{'o' * draw.randrange(6)}{i}" for i in range(draw.choice([3, 20, 200, 2000]))]
        words = draw.choices(vocabulary, k=draw.randrange(1, 700))
        for _ in range(draw.randrange(6)):
            at, n = draw.randrange(len(words)), draw.randrange(1, 60)
            words[draw.randrange(len(words)) :] += words[at : at + n] * draw.randrange(1, 4)
        text = "".join(w + draw.choice([" ", " ", " ", ". ", "\n", "\n\n"]) for w in words)
        expected = theirs.filter(Document(text=text, id="1"))
        assert ours.filter(Document(text=text, id="1")) == expected
        verdicts.add(str(expected))
    assert len(verdicts) > 8
