"""`pretrain generate` and `chat` on folders of tiny models of every kind."""

import json

import jax
import pytest

from pretrain.cli import main
from pretrain.cli.chat import begun, typed
from pretrain.cli.choice import cut
from pretrain.configs.bert import bert
from pretrain.configs.llama import llama
from pretrain.configs.t5 import t5
from pretrain.models.convert import save
from pretrain.models.generate.config import GREEDY
from pretrain.models.generate.decode import generate
from pretrain.opened import open_run
from tests.models.mechanisms import drawn

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<extra_id_0>", "<extra_id_1>"]
WORDS = [f"w{i}" for i in range(40)]
SIZE = {"vocab_size": 47, "d_model": 16, "layers": 1, "heads": 2, "d_ff": 24}
HUB = {
    "llama": llama(**SIZE, tied=True),
    "small": llama(**SIZE | {"d_ff": 20}, tied=True),
    "t5": t5(**SIZE, head_dim=8),
    "bert": bert(**SIZE),
}
STARTS = {"t5": {"decoder_start_token_id": 0}}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("hub")
    names = SPECIALS + WORDS
    for name, config in HUB.items():
        save(drawn(config, 0.6), path / name, fields=STARTS.get(name))
        model = tokenizers.Tokenizer(tokenizers.models.WordLevel({n: i for i, n in enumerate(names)}, "[UNK]"))
        model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        model.add_special_tokens(SPECIALS)
        model.save(str(path / name / "tokenizer.json"))
    return path


def said(capsys, *words: str) -> dict:
    assert main(["generate", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words: str) -> str:
    assert main(["generate", *words]) == 2
    return capsys.readouterr().err.strip()


def test_penalties_and_lengths_reach_the_sampling(hub, capsys):
    run, prompt = str(hub / "llama"), ["--prompt", "w1 w2", "--temperature", "0", "--max-tokens", "12"]
    free = said(capsys, run, *prompt)
    once = said(capsys, run, *prompt, "--no-repeat-ngram", "1")["tokens"]
    assert len(set(once) | {2, 8, 9}) == len(once) + 3
    for option in ("repetition", "presence", "frequency"):
        assert said(capsys, run, *prompt, f"--{option}-penalty", "3")["tokens"] != free["tokens"], option
    first = said(capsys, run, *prompt, "--first-token", "30")["tokens"]
    assert first[0] == 30
    assert said(capsys, run, *prompt, "--first-token", "[MASK]")["tokens"][0] == 4


def test_a_text_ends_before_its_stop(hub, capsys):
    run, prompt = str(hub / "llama"), ["--prompt", "w1 w2", "--temperature", "0", "--max-tokens", "12"]
    free = said(capsys, run, *prompt)
    words = free["text"].split(" ")
    stop = f"{words[3]} {words[4]}"
    out = said(capsys, run, *prompt, "--stop", "never", stop)
    assert out["text"] == free["text"].split(stop)[0]
    assert out["tokens"] == free["tokens"][: len(out["tokens"])]
    assert len(out["logprobs"]) == len(out["tokens"]) < 12


def test_beams_give_the_best_and_the_others(hub, capsys):
    run = str(hub / "llama")
    out = said(capsys, run, "--prompt", "w1 w2", "--beams", "3", "--max-tokens", "5", "--length-penalty", "0")
    assert len(out["others"]) == 2
    scores = [out["score"], *(other["score"] for other in out["others"])]
    assert scores == sorted(scores, reverse=True)
    assert out["score"] == pytest.approx(sum(out["logprobs"]), abs=1e-4)


def test_a_draft_changes_no_greedy_text_and_says_how_often_it_was_right(hub, capsys):
    words = ["--prompt", "w1 w2", "--temperature", "0", "--max-tokens", "9"]
    alone = said(capsys, str(hub / "llama"), *words)
    with_draft = said(capsys, str(hub / "llama"), *words, "--draft", str(hub / "small"), "--drafts", "3")
    assert with_draft["tokens"] == alone["tokens"]
    assert 0 <= with_draft["acceptance"] <= 1


def test_a_source_is_framed_and_answered_from_the_start_token(hub, capsys):
    words = ["--source", "w5 <extra_id_0> w7", "--max-tokens", "6", "--temperature", "0"]
    out = said(capsys, str(hub / "t5"), *words)
    model = open_run(hub / "t5").model
    options = {"max_tokens": 6, "sampling": GREEDY, "key": jax.random.key(0), "stop_tokens": [3]}
    want = generate(model, [[0]], sources=[[2, 12, 5, 14, 3]], **options)
    assert out["tokens"] == want.tokens[0]
    begun_ = said(capsys, str(hub / "t5"), *words, "--prompt", "w9")
    assert begun_["tokens"] == generate(model, [[0, 16]], sources=[[2, 12, 5, 14, 3]], **options).tokens[0]


def test_masks_are_filled_with_candidates(hub, capsys):
    run, prompt = str(hub / "bert"), ["--prompt", "w1 [MASK] w3 [MASK]", "--top-k", "2"]
    out = said(capsys, run, *prompt)
    assert [m["place"] for m in out["masks"]] == [2, 4]
    assert [len(m["tokens"]) for m in out["masks"]] == [2, 2]
    assert out["text"].split()[0] == "w1"
    assert main(["generate", run, *prompt]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == out["text"]
    assert lines[1].startswith("mask 1: ")


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("llama", "--source x", "source: RUN reads no text beside the one it writes, expected a prompt; "),
        ("t5", "--prompt w1", "source: missing, RUN reads one text and writes another; give what it reads as --source"),
        ("bert", "--source w1", "source: RUN is an encoder, expected a text with masks; give it as --prompt"),
        ("bert", "--prompt w1", "found no [MASK] in the text, expected one or more; write it where a token is missing"),
        ("llama", "--prompt w1 --beams 2 --temperature 1", "temperature=1.0: expected 0, beams draw nothing; leave it"),
        ("llama", "--prompt w1 --beams 2 --draft d", "draft: found beams too, expected one of them; "),
        ("llama", "--prompt w1 --beams 0", "beams=0: expected at least 1; "),
        ("llama", "--prompt w1 --drafts 0", "drafts=0: expected 1 to 31 tokens at a time; "),
        ("llama", "--prompt w1 --repetition-penalty 0", "repetition_penalty=0.0: expected more than 0; "),
        ("llama", "--prompt w1 --first-token [NO]", "first_token: found no special token '[NO]' in the tokenizer, "),
        ("llama", "--prompt w1 --draft nowhere", "nowhere: no such run; "),
    ],
)
def test_what_does_not_fit_is_one_line(hub, capsys, run, words, message):
    path = str(hub / run)
    assert refused(capsys, path, *words.split()).startswith(message.replace("RUN", path))


@pytest.mark.parametrize("run", ["t5", "bert"])
def test_chat_needs_a_model_that_continues_a_text(hub, capsys, run):
    path = str(hub / run)
    assert main(["chat", path]) == 2
    assert capsys.readouterr().err == (
        f"{path}: found no model that continues a text, chat needs one; use pretrain generate\n"
    )


class Letters:
    def decode(self, ids):
        return "".join(map(chr, ids))


def test_chat_types_no_part_of_a_stop(capsys):
    tokens = iter(map(ord, "a stop and a stone stop!stop"))
    assert typed(tokens, Letters(), ["stone s", "stop!"]) == "a stop and a "
    assert capsys.readouterr().out == "a stop and a \n"
    assert "".join(map(chr, tokens)) == "top!stop"
    assert (begun("a st", ["stop"]), begun("a", ["stop"]), begun("xx", ["xxx", "y"])) == (2, 0, 2)


def test_a_cut_text_keeps_the_tokens_up_to_its_stop():
    assert cut([*map(ord, "one two three")], ["two", "three"], Letters().decode) == ("one ", 7)
    assert cut([*map(ord, "one")], ["two"], Letters().decode) == ("one", 3)
