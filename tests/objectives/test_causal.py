"""Prefixes seen from both sides, and middles that stand last, put back."""

import numpy as np
import pytest

from pretrain.data.pack import pack
from pretrain.objectives.config import FillInTheMiddle, PrefixLm
from pretrain.objectives.transforms import transform
from tests.objectives.zoo import TOKENIZER, decoder, raw

PREFIX, SUFFIX, MIDDLE = (TOKENIZER.specials[f"<fim_{name}>"] for name in ("prefix", "suffix", "middle"))
EOS = TOKENIZER.eos


def segments(batch, name: str) -> list[np.ndarray]:
    """An array's part for each document."""
    rows = zip(batch[name], batch["segments"])
    return [row[number == n] for row, number in rows for n in range(1, number.max() + 1)]


def test_a_prefix_is_asked_nothing_and_the_rest_everything():
    text = raw(256, 64)
    batch, plain = transform(PrefixLm(), TOKENIZER, 256, decoder())(text), pack(text.tokens, text.starts, text.lengths)
    assert all(np.array_equal(batch[name], plain[name]) for name in ("tokens", "segments", "positions"))
    shares = []
    for prefix, weights, usual in zip(
        *(segments(b, n) for b, n in ((batch, "prefix"), (batch, "weights"), (plain, "weights")))
    ):
        n, total = int(prefix.sum()), len(prefix)
        assert prefix.tolist() == [1] * n + [0] * (total - n)
        assert weights.tolist() == [0] * (n - 1) + usual[n - 1 :].tolist()
        if total > 1:
            assert 1 <= n < total
        if total > 20:
            shares.append(n / total)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    assert np.std(shares) == pytest.approx(1 / np.sqrt(12), abs=0.05)
    asked = batch["weights"] > 0
    assert np.array_equal(batch["targets"][asked], plain["targets"][asked])
    assert not batch["targets"][~asked].any()


def put_back(tokens: list[int]) -> tuple[str, list[int]]:
    """(the order that a document was in, the document)."""
    if tokens[0] != PREFIX:
        return "plain", tokens
    assert tokens[-1] == EOS
    s, m = tokens.index(SUFFIX), tokens.index(MIDDLE)
    one, suffix, rest = tokens[1:s], tokens[s + 1 : m], tokens[m + 1 : -1]
    assert not {PREFIX, SUFFIX, MIDDLE, EOS} & {*one, *suffix, *rest}
    return ("spm" if s == 1 else "psm"), ([*one, *rest, *suffix] if s > 1 else [*rest, *suffix])


def documents(text) -> list[list[int]]:
    plain = pack(text.tokens, text.starts, text.lengths)
    return [d.tolist() for d in segments(plain, "tokens")]


def test_every_document_can_be_put_back():
    rows = transform(FillInTheMiddle(rate=0.5), TOKENIZER, 512, decoder())
    text = raw(rows.room, 400, longest=300)
    batch = rows(text)
    found = [d.tolist() for d in segments(batch, "tokens")]
    assert len(found) == len(documents(text))
    kinds = []
    for made, original in zip(found, documents(text)):
        kind, back = put_back(made)
        content = original[:-1] if original[-1] == EOS else original
        if kind == "plain":
            assert back == original
        elif kind == "psm":
            assert back == content
        else:  # where the prefix ends and the middle begins is not marked
            assert back == content
        kinds += [kind] * (len(content) > 2)
    share = [kinds.count(kind) / len(kinds) for kind in ("plain", "psm", "spm")]
    assert share == pytest.approx([0.5, 0.25, 0.25], abs=0.04)


def test_parts_are_cut_anywhere():
    rows = transform(FillInTheMiddle(rate=1.0, spm=0.0), TOKENIZER, 116, decoder())
    text = raw(rows.room, 2000, longest=10**4)
    batch = rows(text)
    made = [row[row != 0].tolist() for row in batch["tokens"]]
    cuts = np.array(
        [(t.index(SUFFIX) - 1, t.index(MIDDLE) - t.index(SUFFIX) - 1) for t in made if t.count(PREFIX) == 1]
    )
    assert len(cuts) > 1900
    prefix, suffix = cuts[:, 0] / 100, cuts[:, 1] / 100
    assert prefix.mean() == pytest.approx(1 / 3, abs=0.02)
    assert suffix.mean() == pytest.approx(1 / 3, abs=0.02)
    assert np.corrcoef(prefix, suffix)[0, 1] == pytest.approx(-0.5, abs=0.06)  # of two uniform cuts


def test_targets_follow_within_each_document():
    rows = transform(FillInTheMiddle(rate=0.5), TOKENIZER, 128, decoder())
    text = raw(rows.room, 300, longest=100)
    batch = rows(text)
    same = batch["segments"][:, 1:] == batch["segments"][:, :-1]
    inside = same & (batch["segments"][:, 1:] > 0)
    assert (batch["weights"][:, :-1][inside] == 1).all()
    assert np.array_equal(batch["targets"][:, :-1][inside], batch["tokens"][:, 1:][inside])
    ends = (batch["segments"] > 0) & np.pad(~same, ((0, 0), (0, 1)), constant_values=True)
    goes_on = 0
    for row, at in zip(*np.nonzero(ends)):
        final = not (batch["segments"][row, at + 1 :] > 0).any()
        whole = put_back(batch["tokens"][row][batch["segments"][row] == batch["segments"][row, at]].tolist())[0]
        if final and whole == "plain" and not text.starts[row, rows.room]:
            assert (batch["weights"][row, at], batch["targets"][row, at]) == (1, text.tokens[row, rows.room])
            goes_on += 1
        else:
            assert batch["weights"][row, at] == batch["targets"][row, at] == 0
    assert goes_on > 50


def test_nothing_is_cut_off_and_more_documents_than_there_is_room_for_stay_as_they_are():
    rows = transform(FillInTheMiddle(rate=1.0, room=8), TOKENIZER, 128, decoder())
    text = raw(rows.room, 50, longest=12)
    batch = rows(text)
    kinds = [put_back(d.tolist())[0] for d in segments(batch, "tokens")]
    assert kinds.count("psm") + kinds.count("spm") == 100
    assert len(kinds) == len(documents(text)) > 400
    tokens = np.sort(batch["tokens"][batch["tokens"] > MIDDLE])
    assert np.array_equal(tokens, np.sort(text.tokens[:, :-1][text.tokens[:, :-1] > MIDDLE]))
