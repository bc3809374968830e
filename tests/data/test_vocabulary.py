"""Where words and sentences begin, for every kind of tokenizer, and special tokens by name."""

import itertools

import numpy as np
import pytest

from pretrain.data.config import TrainSentencePiece
from pretrain.data.tokenizer import load_tokenizer
from pretrain.data.tokenizer_export import to_hf
from pretrain.data.tokenizer_sentencepiece import train_sentencepiece
from pretrain.data.vocabulary import Vocabulary, special
from pretrain.errors import UserError

TEXT = (
    'The quick-brown fox (who) jumps. It costs 3.14 dollars! "Really?" Yes.\nNext line 東京は大きい。また Z\u0301ebra'
)
TEXTS = [TEXT * 3, "the quick brown fox jumps over the lazy dog " * 50, "".join(map(chr, range(33, 127)))]
KINDS = ("sentencepiece", "exported", "byte level", "wordpiece")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param in ("sentencepiece", "exported"):
        config = TrainSentencePiece(vocab_size=420, sample_bytes=10_000, special_tokens=("[MASK]",))
        trained = train_sentencepiece(TEXTS, config, folder / "sp")
        if request.param == "sentencepiece":
            return trained
        to_hf(trained, folder / "hf")
        (folder / "hf" / "tokenizer.model").unlink()
        return load_tokenizer(folder / "hf")
    import tokenizers

    if request.param == "byte level":
        model = tokenizers.ByteLevelBPETokenizer()
        model.train_from_iterator(TEXTS, vocab_size=400, special_tokens=["[MASK]", "</s>"], show_progress=False)
    else:
        model = tokenizers.BertWordPieceTokenizer(lowercase=False, handle_chinese_chars=True, strip_accents=False)
        model.train_from_iterator(TEXTS, vocab_size=300, show_progress=False)
    model.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


def parts(tokenizer, begins: str, text: str) -> list[str]:
    """The text cut where words or sentences begin."""
    ids = np.array([tokenizer.encode(text)])
    where = getattr(Vocabulary.of(tokenizer), begins)(ids, np.zeros(ids.shape, bool))[0]
    cuts = [*np.flatnonzero(where), len(where)]
    return [tokenizer.bytes_of(ids[0, a:b]).decode("utf-8", "replace") for a, b in itertools.pairwise(cuts)]


def test_words_begin_at_spaces_marks_and_ideographs(tokenizer):
    found = [p.strip() for p in parts(tokenizer, "words", TEXT) if p.strip()]
    for word in ("The", "quick", "brown", "fox", "who", "jumps", "It", "dollars", "Really", "Yes", "Next", "line"):
        assert word in found, found
    assert "quick-brown" not in found
    assert any(word.startswith("東") for word in found)


def test_sentences_end_at_full_stops_before_a_space_and_at_line_breaks(tokenizer):
    found = [p.strip() for p in parts(tokenizer, "sentences", TEXT)]
    if tokenizer.bytes_of(tokenizer.encode("a\nb")).count(b"\n"):
        assert found[0] == "The quick-brown fox (who) jumps."
        assert found[1] == "It costs 3.14 dollars!"
        assert found[-1].startswith("また") or found[-1].startswith("Next line")
        assert any(p.endswith("Yes.") for p in found)
        assert any(p.startswith("Next line") for p in found)
    else:  # WordPiece has no spaces: every full stop ends a sentence
        assert "".join(found[0].split()) == "Thequick-brownfox(who)jumps."


def test_text_never_holds_a_special_token_and_its_tokens_are_ordinary(tokenizer):
    vocabulary, ids = Vocabulary.of(tokenizer), tokenizer.encode(TEXT)
    assert not vocabulary.is_special(ids).any()
    assert set(ids) <= set(vocabulary.ordinary.tolist())
    assert vocabulary.is_special(list(tokenizer.specials.values())).all()


def test_special_tokens_are_found_by_name_or_by_what_they_are_for(tokenizer):
    assert special(tokenizer, "[MASK]", "objective.mask") == tokenizer.specials["[MASK]"]
    assert special(tokenizer, "eos", "objective") == tokenizer.eos


def test_a_missing_one_is_named_with_those_that_are_there(tokenizer):
    with pytest.raises(UserError) as error:
        special(tokenizer, "[GONE]", "objective.masking.mask")
    assert str(error.value).startswith(
        "objective.masking.mask: found no special token '[GONE]' in the tokenizer, expected it; name one of "
    )
    assert "[MASK]" in str(error.value)


def test_a_part_of_a_character_begins_nothing(tmp_path):
    tokenizer = train_sentencepiece(TEXTS, TrainSentencePiece(vocab_size=420, sample_bytes=10_000), tmp_path)
    assert len(tokenizer.encode("ø")) == 2  # bytes
    word = parts(tokenizer, "words", " naïveté ø")
    assert word == [" naïveté", " ø"]
