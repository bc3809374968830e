"""Span corruption against T5's published code and numbers, and undone."""

import numpy as np
import pytest

from pretrain.data.draws import Draws, row_keys
from pretrain.errors import UserError
from pretrain.objectives import lengths
from pretrain.objectives.config import Denoiser, SpanCorruption, Ul2
from pretrain.objectives.spans import divided, noise_mask
from pretrain.objectives.transforms import transform
from tests.objectives.zoo import TOKENIZER, Words, both, decoder, raw

NAMES = tuple(f"<extra_id_{i}>" for i in range(100))
SENTINELS = [TOKENIZER.specials[name] for name in NAMES]


def draws(rows: int, seed: int = 0) -> Draws:
    return Draws(row_keys(seed, np.arange(rows), "test"))


def restored(inputs: list[int], targets: list[int]) -> list[int]:
    """The text, from what is read and what is written."""
    assert inputs.pop() == targets.pop() == TOKENIZER.eos
    spans, at = {}, None
    for t in targets:
        if t in SENTINELS:
            at = SENTINELS.index(t)
            assert at == len(spans)
            spans[at] = []
        else:
            spans[at].append(t)
    assert all(spans.values())
    out = [x for t in inputs for x in (spans.pop(SENTINELS.index(t)) if t in SENTINELS else [t])]
    assert not spans
    return out


def test_lengths_are_those_of_t5s_code():
    """`random_spans_helper` of its preprocessors, run by hand for each."""
    published = {(512, 0.15, 3.0): (568, 114), (1024, 0.15, 3.0): (1137, 229), (128, 0.5, 3.0): (190, 128)}
    for (length, rate, mean), (tokens, targets) in published.items():
        kinds = SpanCorruption(rate=rate, mean=mean).denoisers
        assert lengths.raw_tokens(length, kinds, encoder=True) == tokens
        assert lengths.target_length(length, kinds) == targets


@pytest.mark.parametrize("length", [32, 128, 512])
def test_an_encoders_row_is_full_and_the_decoders_has_the_length_that_t5_computes(length):
    rows = transform(SpanCorruption(), TOKENIZER, length, both())
    text = raw(rows.room, 32)
    batch = rows(text)
    assert batch["encoder_tokens"].shape[1] == length
    assert batch["encoder_segments"].all()
    assert batch["weights"].all()
    if length == 512:  # the numbers of T5's published training
        assert (rows.room, batch["tokens"].shape[1]) == (568, 114)
    for row in range(32):
        back = restored(batch["encoder_tokens"][row].tolist(), batch["targets"][row].tolist())
        assert back == text.tokens[row, :-1].tolist()
    assert (batch["tokens"][:, 0] == TOKENIZER.pad).all()
    assert np.array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])


def test_a_decoder_reads_and_writes_in_one_row():
    rows = transform(SpanCorruption(), TOKENIZER, 512, decoder())
    text = raw(rows.room, 32)
    batch = rows(text)
    assert batch["tokens"].shape[1] - batch["segments"].sum(1).max() <= 2
    for row in range(32):
        n, total = int(batch["prefix"][row].sum()), int(batch["segments"][row].sum())
        assert batch["prefix"][row].tolist() == [1] * n + [0] * (512 - n)
        assert batch["weights"][row].tolist() == [0] * (n - 1) + [1] * (total - n + 1) + [0] * (512 - total)
        written = batch["targets"][row][n - 1 : total].tolist()
        assert batch["tokens"][row, n:total].tolist() == written[:-1]
        assert restored(batch["tokens"][row, :n].tolist(), written) == text.tokens[row, :-1].tolist()


@pytest.mark.parametrize(("rate", "mean"), [(0.15, 3.0), (0.5, 3.0), (0.15, 8.0), (0.5, 64.0)])
@pytest.mark.parametrize("n", [2, 3, 17, 568])
def test_as_many_tokens_and_spans_are_hidden_as_in_t5(n, rate, mean):
    (config,) = SpanCorruption(rate=rate, mean=mean).denoisers
    mask = noise_mask(n, config, draws(64))
    many = min(max(round(n * rate), 1), n - 1)
    spans = min(max(round(many / mean), 1), n - many)
    assert (mask.sum(1) == many).all()
    assert ((np.diff(mask.astype(int), axis=1) == 1).sum(1) == spans).all()
    assert not mask[:, 0].any()
    assert mask[:, -1].all()
    assert lengths.lengths(n, config) == (n - many + spans + 1, many + spans + 1, n + 2 * spans + 2)


def test_all_divisions_are_equally_likely():
    sizes = divided(6, 3, draws(20_000), "x")
    assert (sizes.sum(1) == 6).all()
    found, counts = np.unique(sizes, axis=0, return_counts=True)
    assert len(found) == 10  # of 6 into 3 parts
    assert abs(counts / 20_000 - 0.1).max() < 0.01


def test_spans_have_the_stated_mean_length():
    mask = noise_mask(568, SpanCorruption().denoisers[0], draws(200))
    spans = (np.diff(mask.astype(int), axis=1) == 1).sum()
    assert mask.sum() / spans == pytest.approx(3, abs=0.05)
    assert mask.mean() == pytest.approx(0.15, abs=0.001)


def test_the_last_shorter_row_is_corrupted_at_the_same_rate():
    rows = transform(SpanCorruption(), TOKENIZER, 512, both())
    text = raw(rows.room, 4)
    short = np.array([568, 300, 1, 0])
    batch = rows(type(text)(**{**vars(text), "lengths": short}))
    for row, n in enumerate(short[:2]):
        read, written = batch["encoder_segments"][row] > 0, batch["weights"][row] > 0
        back = restored(batch["encoder_tokens"][row][read].tolist(), batch["targets"][row][written].tolist())
        assert back == text.tokens[row, :n].tolist()
    assert not batch["weights"][2:].any()
    assert not batch["encoder_segments"][2:].any()


def test_a_missing_sentinel_is_named():
    with pytest.raises(UserError, match=r"objective.sentinel: found no special token '<extra_id_40>' in the tokenizer"):
        transform(SpanCorruption(rate=0.5), Words(names=NAMES[:40]), 512, both())


MODES = {name: TOKENIZER.specials[name] for name in ("[NLU]", "[NLG]", "[S2S]")}


@pytest.mark.parametrize("model", [both(), decoder()], ids=["both", "decoder"])
def test_a_mixture_names_its_kind_and_its_rows_can_be_undone(model):
    rows = transform(Ul2(), TOKENIZER, 256, model)
    text = raw(rows.room, 700)
    batch = rows(text)
    counts, hidden = dict.fromkeys(MODES, 0), {name: [] for name in MODES}
    for row in range(700):
        read, written = _sides(batch, row)
        name = next(name for name, i in MODES.items() if i == read[0])
        assert restored(read[1:], list(written)) == text.tokens[row, :-1].tolist()
        counts[name] += 1
        hidden[name].append(sum(t not in SENTINELS for t in written[:-1]) / rows.room)
        if name == "[S2S]":
            assert read[-2:] == [SENTINELS[0], TOKENIZER.eos]
    assert [counts[name] / 700 for name in MODES] == pytest.approx([2 / 7, 4 / 7, 1 / 7], abs=0.05)
    assert np.mean(hidden["[NLU]"]) == pytest.approx(0.15, abs=0.01)
    assert np.mean(hidden["[NLG]"]) == pytest.approx((3 * 0.5 + 0.15) / 4, abs=0.03)
    assert np.mean(hidden["[S2S]"]) == pytest.approx(0.25, abs=0.04)
    assert max(hidden["[S2S]"]) > 0.45


def _sides(batch, row: int) -> tuple[list[int], list[int]]:
    if "encoder_tokens" in batch:
        read = batch["encoder_tokens"][row][batch["encoder_segments"][row] > 0]
        return read.tolist(), batch["targets"][row][batch["weights"][row] > 0].tolist()
    read = batch["tokens"][row][batch["prefix"][row] > 0]
    return read.tolist(), batch["targets"][row][batch["weights"][row] > 0].tolist()


def test_rows_of_a_mixture_fit_whatever_is_drawn():
    for length in (16, 100):
        for model in (both(), decoder()):
            rows = transform(Ul2(), TOKENIZER, length, model)
            for n in range(rows.room + 1):
                text = raw(rows.room, 32, seed=n)
                batch = rows(type(text)(**{**vars(text), "lengths": np.full(32, n)}))
                for row in range(32 * (n > 1)):
                    read, written = _sides(batch, row)
                    assert restored(read[1:], written) == text.tokens[row, :n].tolist()


def test_shares_weigh_the_kinds():
    kinds = (Denoiser(mode="[NLU]", rate=0.15, mean=3.0, share=3.0), Denoiser(mode="[NLG]", rate=0.5, mean=3.0))
    rows = transform(Ul2(denoisers=kinds), TOKENIZER, 64, both())
    first = rows(raw(rows.room, 1000))["encoder_tokens"][:, 0]
    assert (first == MODES["[NLU]"]).mean() == pytest.approx(0.75, abs=0.04)
