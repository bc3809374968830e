"""Parts of a corpus side by side: exact shares of every stretch, each part's rows once an epoch, the past unchanged."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.config import CorpusConfig, DataConfig, Named, Sources, TextFiles, TrainSentencePiece
from pretrain.data.config_mixture import Cap, Mixture, Phase, Weight
from pretrain.data.corpus import prepare_if_needed
from pretrain.data.mixture import PERIOD, Mixed, Part, continued, pattern, shares
from pretrain.data.pack import Packed
from pretrain.data.pipeline import Pipeline, validation_batches
from pretrain.errors import UserError, check


def parts(*rows: int) -> list[Part]:
    first = np.cumsum([0, *rows])
    return [Part("abcdef"[i], int(first[i]), n, 100 * n) for i, n in enumerate(rows)]


def phase(step: int = 0, ramp: int = 0, **weights: float) -> Phase:
    return Phase(step=step, ramp=ramp, weights=tuple(Weight(name=n, weight=w) for n, w in weights.items()))


def mixed(mixture: Mixture, *rows: int, batch: int = 4, shuffle: bool = True) -> Mixed:
    check(mixture)
    return Mixed(mixture, parts(*rows), batch=batch, seed=1, shuffle=shuffle)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any))
def test_each_part_is_less_than_a_sample_from_its_share_after_any_number(counts):
    turns = pattern(tuple(counts)).turns
    had = np.cumsum(turns[:, None] == np.arange(len(counts)), axis=0)
    want = np.arange(1, len(turns) + 1)[:, None] * np.array(counts) / sum(counts)
    assert np.abs(had - want).max() < 1
    assert had[-1].tolist() == counts


def test_weights_are_exact_ratios_where_a_period_holds_them_and_near_ones_else():
    assert shares([0.5, 0.3, 0.2]) == (5, 3, 2)
    assert shares([3, 1]) == (3, 1)
    assert shares([2, 0]) == (1, 0)
    found = shares([np.pi, 1.0, 1e-9])
    assert sum(found) == PERIOD
    assert found[2] == 1
    assert abs(found[0] / PERIOD - np.pi / (np.pi + 1)) < 2 / PERIOD


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_in_every_window_the_parts_have_their_shares(data):
    weights = data.draw(st.lists(st.integers(1, 30), min_size=2, max_size=4))
    order = mixed(Mixture(phases=(phase(**dict(zip("abcd", weights))),)), *([50] * len(weights)))
    begin, length = data.draw(st.integers(0, 10**9)), data.draw(st.integers(1, 400))
    turns, _ = order.turns(np.arange(begin, begin + length))
    want = length * np.array(weights) / sum(weights)
    assert np.abs(np.bincount(turns, minlength=len(weights)) - want).max() < 2


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_part_shows_each_of_its_rows_once_an_epoch(shuffle):
    order = mixed(Mixture(phases=(phase(a=3, b=1), phase(30, a=1, b=2))), 17, 29, shuffle=shuffle)
    samples = np.arange(800)
    rows, (turns, own) = order.rows(samples), order.turns(samples)
    for part, first, n in ((0, 0, 17), (1, 17, 29)):
        mine = rows[turns == part]
        assert own[turns == part].tolist() == list(range(len(mine)))
        for epoch in range(len(mine) // n):
            assert sorted(mine[epoch * n : (epoch + 1) * n]) == list(range(first, first + n))


def test_samples_are_what_they_are_whatever_is_asked_beside_them():
    order = mixed(Mixture(phases=(phase(a=3, b=1, c=2), phase(10, 8, b=1))), 17, 29, 5)
    together = order.rows(np.arange(300))
    for sample in (0, 1, 39, 40, 41, 72, 73, 299):
        assert order.rows(np.array([sample]))[0] == together[sample]


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_sample_of_a_row_is_found(shuffle):
    caps = (Cap(name="c", epochs=3),)
    order = mixed(
        Mixture(phases=(phase(a=3, b=1, c=2), phase(10, 8, b=1, c=0.5)), caps=caps), 17, 29, 5, shuffle=shuffle
    )
    for until in (0, 1, 43, 600):
        rows = order.rows(np.arange(until))
        for wanted in (np.arange(51), np.array([16, 17]), np.array([50])):
            assert order.samples_of(wanted, until).tolist() == np.flatnonzero(np.isin(rows, wanted)).tolist()


def test_other_weights_from_a_step_on_leave_what_was_before():
    before = Mixture(phases=(phase(a=3, b=1),))
    after = Mixture(phases=(phase(a=3, b=1), phase(25, a=1, b=1)))
    one, other = mixed(before, 17, 29), mixed(after, 17, 29)
    samples = np.arange(400)
    changed = one.rows(samples) != other.rows(samples)
    assert not changed[: 25 * 4].any()
    assert changed[25 * 4 :].any()
    assert continued(before, after, 25)
    assert continued(before, after, 10)
    assert not continued(before, after, 26)
    assert not continued(before, None, 1)
    assert not continued(before, Mixture(phases=(phase(a=2, b=1),)), 1)


def test_a_ramp_moves_the_weights_in_stairs():
    order = mixed(Mixture(phases=(phase(a=1), phase(100, 64, b=1))), 1000, 1000, batch=50)
    turns, _ = order.turns(np.arange(0, 200 * 50))
    share = turns.reshape(-1, 50).mean(axis=1)
    assert not share[:100].any()
    assert all(a <= b + 0.05 for a, b in pairwise(share))
    assert 0.4 < share[128:136].mean() < 0.6
    assert (share[164:] == 1).all()


def test_a_part_that_was_read_often_enough_gives_its_place_to_the_others():
    caps = (Cap(name="a", epochs=2), Cap(name="b", epochs=0.5))
    order = mixed(Mixture(phases=(phase(a=1, b=1, c=2),), caps=caps), 10, 30, 7)
    turns, _ = order.turns(np.arange(1000))
    assert (turns == 0).sum() == 20
    assert (turns == 1).sum() == 15
    assert set(turns[75:]) == {2}
    assert order.ends is None


def test_a_mixture_whose_parts_are_all_used_up_ends():
    caps = (Cap(name="a", epochs=1), Cap(name="b", epochs=1))
    order = mixed(Mixture(phases=(phase(a=1, b=3),), caps=caps), 10, 12)
    assert order.ends == 22
    assert sorted(order.rows(np.arange(22))) == list(range(22))
    with pytest.raises(UserError, match="found sample 22, the mixture ends with 22; raise its caps"):
        order.rows(np.array([22]))


def test_without_phases_a_part_weighs_as_much_as_it_has_or_less_when_it_is_large():
    turns, _ = mixed(Mixture(), 10, 30).turns(np.arange(400))
    assert np.bincount(turns).tolist() == [100, 300]
    turns, _ = mixed(Mixture(temperature=2.0), 10, 90).turns(np.arange(400))
    assert np.bincount(turns).tolist() == [100, 300]


WRONG = [
    (Mixture(phases=(phase(5, a=1),)), "phases.0.step=[5]: expected 0"),
    (Mixture(phases=(phase(a=1), phase(9, 5, a=1), phase(12, a=1))), "expected each after the one before and its ramp"),
    (Mixture(phases=(phase(ramp=4, a=1),)), "found a ramp below 0 or in the first phase"),
    (Mixture(phases=(phase(a=0),)), "found weights below 0 or none above it"),
    (Mixture(caps=(Cap(name="a"), Cap(name="a"))), "found a name twice"),
    (Mixture(caps=(Cap(name="a", epochs=0),)), "found epochs of 0 or less"),
    (Mixture(temperature=0), "temperature=0: expected a positive number"),
    (Mixture(phases=(phase(a=1),), temperature=2.0), "phases give the weights"),
]


@pytest.mark.parametrize(("mixture", "message"), WRONG)
def test_what_makes_no_sense_is_refused(mixture, message):
    with pytest.raises(UserError) as error:
        check(mixture)
    assert message in str(error.value)


def test_names_that_the_corpus_does_not_have_are_refused():
    with pytest.raises(UserError, match="found 'x', expected names of the corpus: a, b"):
        mixed(Mixture(phases=(phase(a=1, x=1),)), 3, 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    folder, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(0)
    sources = []
    for name, letters, documents in (("prose", "etaoin", 60), ("code", "(){}=x", 25)):
        (folder / name).mkdir()
        for n in range(documents):
            words = ["".join(rng.choice(list(letters), rng.integers(1, 7))) for _ in range(rng.integers(5, 80))]
            (folder / name / f"{n:02}.txt").write_text(" ".join(words))
        sources.append(Named(name=name, source=TextFiles(paths=(str(folder / name),))))
    tokenizer = TrainSentencePiece(vocab_size=400, sample_bytes=10_000)
    corpus = CorpusConfig(
        source=Sources(parts=tuple(sources)), tokenizer=tokenizer, validation_fraction=0.2, record_tokens=64
    )
    return DataConfig(corpus=replace(corpus, unit_bytes=2000), sequence_length=32, path=str(folder / "c"))


def test_a_corpus_of_two_sources_is_read_in_the_shares_that_were_asked_for(data):
    train, validation, tokenizer = prepare_if_needed(data, data.path, workers=1)
    assert train.parts == validation.parts == ["prose", "code"]
    mixture = Mixture(phases=(phase(prose=3, code=1),))
    pipeline = Pipeline.from_config(train, Packed(32), replace(data, mixture=mixture), 8)
    for step in (0, 7, 10_000):
        files = [{p.file.split("/")[-2] for p in pipeline.sources(step, row)} for row in range(8)]
        assert all(len(names) == 1 for names in files), "no row holds text of two parts"
        assert sum(names == {"code"} for names in files) == 2
        for row, names in enumerate(files):
            text = tokenizer.decode(pipeline.rows(step)["tokens"][row].tolist())
            assert (set(text) & set("(){}=x") == set()) == (names == {"prose"})


def test_a_run_longer_than_its_mixture_is_refused_before_it_starts(data):
    train, _, _ = prepare_if_needed(data, data.path, prepare=False)
    caps = tuple(Cap(name=name, epochs=1) for name in ("prose", "code"))
    pipeline = Pipeline.from_config(train, Packed(32), replace(data, mixture=Mixture(caps=caps)), 4)
    whole = pipeline.plan.rows // 4
    pipeline.require(whole)
    with pytest.raises(UserError, match=f"every part is used up after {whole} steps, expected steps={whole + 1}"):
        pipeline.require(whole + 1)


def test_without_a_mixture_an_epoch_has_every_row_of_both(data):
    train, _, _ = prepare_if_needed(data, data.path, prepare=False)
    pipeline = Pipeline.from_config(train, Packed(32), data, 1)
    rows = [int(pipeline.windows(step)[0]) for step in range(pipeline.plan.rows)]
    assert sorted(rows) == list(range(pipeline.plan.rows))
    assert sum(int(pipeline.raw(step).lengths[0]) for step in range(pipeline.plan.rows)) == train.tokens


def test_the_first_validation_batches_hold_both_parts_and_all_hold_every_row(data):
    _, validation, tokenizer = prepare_if_needed(data, data.path, prepare=False)
    batches = list(validation_batches(validation, Packed(32), 4))
    assert sum(int((b["segments"] > 0).sum()) for b in batches) == validation.tokens
    first = tokenizer.decode(batches[0]["tokens"].reshape(-1).tolist())
    assert set(first) & set("(){}=x")
    assert set(first) & set("etaoin")


def test_a_mixture_of_one_source_is_refused(data):
    one = replace(data.corpus, source=data.corpus.source.parts[0].source)
    with pytest.raises(UserError, match="mixture: found TextFiles, expected Sources"):
        check(replace(data, corpus=one, mixture=Mixture()))


def test_a_file_in_two_parts_is_refused(data, tmp_path):
    one = data.corpus.source.parts[0]
    corpus = replace(data.corpus, source=Sources(parts=(one, replace(one, name="again"))))
    with pytest.raises(UserError, match="found it in the parts prose and again, expected one"):
        prepare_if_needed(replace(data, corpus=corpus, path=None), tmp_path)
