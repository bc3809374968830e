import pickle
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.config import TrainSentencePiece
from pretrain.data.tokenizer import load_tokenizer
from pretrain.data.tokenizer_export import to_hf
from pretrain.data.tokenizer_hf import HFTokenizer
from pretrain.data.tokenizer_sentencepiece import sample, train_sentencepiece

KINDS = ("bpe", "unigram")
CODE = [Path(random.__file__).read_text(), Path(pytest.__file__).read_text(), "\tif x:\n\t\treturn [1, 22, 333]\n" * 50]
SPELLED = ["<s>", "</s>", "<unk>", "<pad>", "<0x41>", "<|user|>", " ", "\u2581", "a", "\n"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        config = TrainSentencePiece(kind=kind, vocab_size=900, special_tokens=("<|user|>",))
        out[kind] = train_sentencepiece(CODE, config, folder)
        out[f"{kind} exported"] = folder / "hf"
        to_hf(out[kind], folder / "hf", add_bos=True)
    return out


def hostile_texts(n: int) -> list[str]:
    r, out = random.Random(0), []
    for _ in range(n):
        runs = (r.choice("a =-#\n\t_\"'(0x\u2581é") * r.randrange(1, 40) for _ in range(r.randrange(12)))
        code = r.choice(CODE)
        at = r.randrange(len(code))
        unicode = (chr(r.choice([r.randrange(0xD800), r.randrange(0xE000, 0x110000), 32])) for _ in range(30))
        out += ["".join(runs), code[at : at + 2500], "".join(unicode), "".join(r.choices(SPELLED, k=8))]
    return out


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
    | st.lists(st.sampled_from(SPELLED)).map("".join)
)
def test_every_text_comes_back_exactly(trained, kind, text):
    tokenizer = trained[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.bytes_of(ids) == text.encode()
    assert not {0, 1, 2, 3, 4} & set(ids)  # no special id, whatever the text spells


@pytest.mark.parametrize("kind", KINDS)
def test_cutting_a_text_does_not_change_its_ids(trained, kind):
    tokenizer, text = trained[kind], CODE[0][:20_000]
    assert tokenizer.encode(text) == tokenizer._model.encode(text)
    assert len(tokenizer.encode("a" * 3_000_000)) > 1000


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_ids(trained, kind):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(trained[f"{kind} exported"])
    ours, ids = trained[kind], ("bos", "eos", "pad", "unk")
    assert [getattr(theirs, f"{name}_token_id") for name in ids] == [getattr(ours, name) for name in ids]
    assert theirs("x")["input_ids"] == [ours.bos, *ours.encode("x")]
    for text in hostile_texts(150):
        got = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert got == ours.encode(text), repr(text)
        assert theirs.decode(got) == text


@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_file_is_read_by_our_own_importer(trained, kind):
    theirs, ours = HFTokenizer.load(trained[f"{kind} exported"] / "tokenizer.json"), trained[kind]
    assert (theirs.bos, theirs.eos, theirs.pad, theirs.unk) == (ours.bos, ours.eos, ours.pad, ours.unk)
    for text in hostile_texts(20):
        ids = theirs.encode(text)
        assert theirs.decode(ids) == text
        assert theirs.bytes_of(ids) == text.encode()
        assert not {0, 1, 2, 3, 4} & set(ids)


def test_a_byte_level_tokenizer_of_hugging_face_is_exact(tmp_path):
    import tokenizers

    model = tokenizers.ByteLevelBPETokenizer()
    model.train_from_iterator(CODE, vocab_size=500, special_tokens=["<|endoftext|>"], show_progress=False)
    model.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos == tokenizer.bos == 0
    for text in [*hostile_texts(20), "a<|endoftext|>b"]:
        ids = tokenizer.encode(text)
        assert 0 not in ids
        assert tokenizer.bytes_of(ids) == text.encode()
    to_hf(tokenizer, tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").encode(CODE[0]) == tokenizer.encode(CODE[0])


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic_and_saving_keeps_the_fingerprint(trained, kind, tmp_path):
    config = TrainSentencePiece(kind=kind, vocab_size=900, special_tokens=("<|user|>",))
    again = train_sentencepiece(CODE, config, tmp_path)
    assert again.content == trained[kind].content
    assert load_tokenizer(tmp_path).fingerprint == pickle.loads(pickle.dumps(again)).fingerprint == again.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_lone_surrogates_become_the_replacement_character(trained, kind):
    for tokenizer in (trained[kind], HFTokenizer.load(trained[f"{kind} exported"] / "tokenizer.json")):
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_newlines_tabs_and_digits_have_pieces(trained):
    pieces = [p.piece for p in trained["bpe"].proto.pieces]
    assert {"\n", "\t", ":\n"} <= set(pieces)
    assert not [p for p in pieces if sum(c.isdigit() for c in p) > 1 and not p.startswith("<0x")]


def test_a_sample_is_bounded_uniform_and_blind_to_order():
    texts = [f"{i:05d}" + "x" * 95 for i in range(5000)]
    chosen = sample(texts, 100_000)
    assert sum(map(len, chosen)) <= 100_000
    assert len(chosen) == 1000
    assert sample(reversed(texts), 100_000) == chosen
    assert 400 < sum(int(t[:5]) < 2500 for t in chosen) < 600


def test_the_memory_of_a_sample_does_not_grow_with_the_corpus():
    def peak(texts: int) -> int:
        tracemalloc.start()
        sample((f"{i:09d}" + "x" * 991 for i in range(texts)), 200_000)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(20_000) < 1.1 * peak(2_000)
    assert peak(20_000) < 3 * 200_000


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    import tokenizers

    model = tokenizers.ByteLevelBPETokenizer()
    model.train_from_iterator(CODE, vocab_size=500, special_tokens=["<|endoftext|>"], show_progress=False)
    folder = tmp_path_factory.mktemp("byte_level")
    model.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
    | st.lists(st.sampled_from([*SPELLED, "<|endoftext|>", "\r\n", "\u00a0", "\ufeff", "e\u0301"])).map("".join)
)
def test_every_text_comes_back_exactly_from_bytes_of_hugging_face(byte_level, text):
    ids = byte_level.encode(text)
    assert byte_level.bytes_of(ids) == text.encode()
    assert byte_level.decode(ids) == text
    assert byte_level.eos not in ids
