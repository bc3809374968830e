"""Each kind of noise against BART's paper, alone and together, and undone."""

import math

import numpy as np
import pytest

from pretrain.data.draws import Draws, row_keys
from pretrain.data.vocabulary import Vocabulary
from pretrain.objectives.config import Denoising
from pretrain.objectives.noise import infilled
from pretrain.objectives.transforms import transform
from tests.objectives.zoo import TOKENIZER, both, raw

MASK, EOS = TOKENIZER.specials["<mask>"], TOKENIZER.eos
VOCABULARY = Vocabulary.of(TOKENIZER)
SILENT = {"infill": 0.0, "permute": 0.0}


def noisy(rows: int = 64, length: int = 256, longest: int = 80, **config):
    return transform(Denoising(**config), TOKENIZER, length, both())(raw(length, rows, longest=longest))


def documents(batch) -> list[tuple[list[int], list[int]]]:
    """(as read, as written) of every document, eos and all."""
    out = []
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segments"][row].max() + 1):
            read = batch["encoder_tokens"][row][batch["encoder_segments"][row] == segment]
            out.append((read.tolist(), batch["targets"][row][batch["segments"][row] == segment].tolist()))
    return out


def fits(read: list[int], written: list[int]) -> bool:
    """Whether masks stand for runs of any length, or for none."""
    reached = {0}
    for token in read:
        if token == MASK:
            reached = set(range(min(reached, default=0), len(written) + 1)) if reached else reached
        else:
            reached = {i + 1 for i in reached if i < len(written) and written[i] == token}
    return len(written) in reached


def test_the_decoder_writes_the_text_and_starts_anew_in_each_document():
    batch, text = noisy(), raw(256, 64)
    assert np.array_equal(batch["targets"], text.tokens[:, :256])
    assert batch["weights"].all()
    begins = batch["positions"] == 0
    assert np.array_equal(begins[:, 1:], text.starts[:, 1:256])
    assert (batch["tokens"][begins] == EOS).all()
    assert (batch["tokens"][:, 1:][~begins[:, 1:]] == batch["targets"][:, :-1][~begins[:, 1:]]).all()


def test_both_stacks_number_documents_alike_and_count_their_positions():
    batch = noisy(rotate=0.5, delete=0.5, mask_tokens=0.1)
    for row in range(64):
        encoder, positions = batch["encoder_segments"][row], batch["encoder_positions"][row]
        n = int((encoder > 0).sum())
        assert not encoder[n:].any()
        assert not positions[n:].any()
        assert set(encoder[:n].tolist()) == set(batch["segments"][row].tolist())
        assert (np.diff(encoder[:n]) >= 0).all()
        for segment in set(encoder[:n].tolist()):
            there = positions[:n][encoder[:n] == segment]
            assert there.tolist() == list(range(len(there)))


def test_infilling_hides_thirty_percent_and_what_is_read_fits_what_is_written():
    batch = noisy(permute=0)
    text = ~VOCABULARY.is_special(batch["targets"])
    shown = (batch["encoder_segments"] > 0) & ~VOCABULARY.is_special(batch["encoder_tokens"])
    assert np.array_equal(text.sum(1) - shown.sum(1), np.floor(text.sum(1) * 0.3 + 0.5))
    assert all(fits(read, written) for read, written in documents(batch))
    assert not fits(*documents(noisy(permute=1, longest=1000))[0])


def test_span_lengths_are_poisson_with_as_many_empty_ones():
    everything = np.ones((400, 512), bool)
    draws = Draws(row_keys(0, np.arange(400), "test"))
    hidden, inserted = infilled(everything, everything.astype(int), 0.3, 3.5, draws)
    assert (hidden.sum(1) == round(512 * 0.3)).all()
    assert not (hidden & inserted).any()
    edges = np.diff(np.pad(hidden.astype(int), ((0, 0), (1, 1))), axis=1)
    begins, ends = np.nonzero(edges == 1), np.nonzero(edges == -1)
    sizes = np.bincount(ends[1] - begins[1])
    sizes[0] = inserted.sum()
    expected = [math.exp(-3.5) * 3.5**k / math.factorial(k) for k in range(10)]
    assert abs(sizes[:10] / sizes.sum() - expected).max() < 0.01
    assert abs(hidden.mean(0)[8:-8] - 0.3).max() < 0.1  # anywhere in the row
    assert hidden.mean(0).min() > 0.05  # at its ends too, where fewer spans can reach


def test_sentences_are_permuted_whole_within_their_document():
    moved = total = 0
    for read, written in documents(noisy(infill=0, longest=400)):
        tail = [EOS] if written[-1] == EOS else []
        assert read[len(read) - len(tail) :] == tail
        old = _sentences(written[: len(written) - len(tail)])
        assert _arranged(read[: len(read) - len(tail)], old)
        total += len(old) > 3
        moved += len(old) > 3 and read != written
    assert total > 30
    assert moved > 0.9 * total


def _arranged(tokens: list[int], parts: list[tuple[int, ...]]) -> bool:
    """Whether the tokens are all the parts in some order."""
    if not parts:
        return not tokens
    fitting = {p for p in parts if tuple(tokens[: len(p)]) == p}
    return any(_arranged(tokens[len(p) :], [*parts[: parts.index(p)], *parts[parts.index(p) + 1 :]]) for p in fitting)


def _sentences(tokens: list[int]) -> list[tuple[int, ...]]:
    if not tokens:
        return []
    row = np.array([tokens])
    begins = np.flatnonzero(VOCABULARY.sentences(row, np.zeros(row.shape, bool))[0])
    return [tuple(part.tolist()) for part in np.split(row[0], begins[1:])]


def test_a_share_of_the_documents_is_permuted():
    pairs = [p for p in documents(noisy(infill=0, permute=0.4, longest=400, rows=256)) if len(_sentences(p[1])) > 4]
    assert sum(read != written for read, written in pairs) / len(pairs) == pytest.approx(0.4, abs=0.1)


def test_documents_are_rotated_at_any_token():
    turned = total = 0
    for read, written in documents(noisy(**SILENT, rotate=0.5, rows=256)):
        end = len(written) - (written[-1] == EOS)
        assert read[end:] == written[end:]
        assert any(read[:end] == written[i:end] + written[:i] for i in range(end + 1))
        total += end > 10
        turned += end > 10 and read != written
    assert turned / total == pytest.approx(0.5 * 0.96, abs=0.05)


@pytest.mark.parametrize("kind", ["delete", "mask_tokens"])
def test_tokens_are_deleted_or_masked_one_by_one(kind):
    changed = total = 0
    for read, written in documents(noisy(**SILENT, **{kind: 0.2})):
        if kind == "mask_tokens":
            assert len(read) == len(written)
            assert all(r in (MASK, w) for r, w in zip(read, written))
            changed += read.count(MASK)
        else:
            rest = iter(written)
            assert all(token in rest for token in read)  # a subsequence
            assert read
            changed += len(written) - len(read)
        total += len([t for t in written if t != EOS])
    assert changed / total == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("config", [{"mean": 1.0, "infill": 0.9}, {"mean": 1.0, "infill": 0.05}, {"mean": 30.0}])
def test_what_is_read_always_fits_in_the_row(config):
    batch = noisy(permute=0, longest=8, **config)
    assert all(fits(read, written) for read, written in documents(batch))
    assert all(read[-1] == EOS for read, written in documents(batch) if written[-1] == EOS)
