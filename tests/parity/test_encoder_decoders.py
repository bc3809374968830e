"""Encoder-decoders compute what `transformers` computes from the same weights, after import and after export."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from pretrain.models import convert
from tests.parity import encoder_decoders as zoo
from tests.parity.zoo import transformers

TOLERANCE = 2e-5
PACKABLE = ("t5", "umt5", "bart", "mbart", "pegasus", "marian")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Their model and ours read from its folder; made once for each name."""
    made = {}

    def get(name: str):
        if name not in made:
            model, folder = zoo.theirs(name), tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            made[name] = model, convert.load(folder)[1]
        return made[name]

    return get


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("name", zoo.MODELS)
def test_hidden_states_and_logits_are_the_same_after_import_and_after_export(name, loaded, tmp_path):
    model, ours = loaded(name)
    pairs = zoo.pairs()
    expected = zoo.their_answer(model, *pairs)
    assert_same(zoo.our_answer(ours, *pairs), expected)
    convert.save(ours, tmp_path, length=40)
    reread, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path, dtype="float32", output_loading_info=True
    )
    assert not any(info.values()), info
    assert_same(zoo.their_answer(reread.eval(), *pairs), expected)
    _, again = convert.load(tmp_path)
    for a, b in zip(zoo.our_answer(again, *pairs), zoo.our_answer(ours, *pairs)):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("name", PACKABLE)
def test_padding_of_source_and_target_changes_nothing(name, loaded):
    model, ours = loaded(name)
    source, target = zoo.pairs()
    read, written = np.array([19, 7, 12]), np.array([4, 23, 15])
    source_segments, segments = (np.arange(n) < lengths[:, None] for n, lengths in ((19, read), (23, written)))
    masked = zoo.our_answer(ours, source, target, source_segments=source_segments, segments=segments)
    theirs = zoo.their_answer(model, source, target, source_segments)
    for row, (s, t) in enumerate(zip(read, written)):
        alone = zoo.their_answer(model, source[row : row + 1, :s], target[row : row + 1, :t])
        for found in (masked, theirs):
            assert_same((found[0][row, :s], *(x[row, :t] for x in found[1:])), [x[0] for x in alone])


@pytest.mark.parametrize("name", PACKABLE)
def test_two_pairs_in_one_row_give_what_they_give_alone(name, loaded):
    model, ours = loaded(name)
    source, target = zoo.pairs(rows=2)
    read, written = (8, 11), (13, 6)

    def packed(rows, lengths, room):
        def of(parts):
            return np.concatenate([*parts, np.zeros(room - sum(lengths), np.int32)])[None]

        numbers = enumerate(lengths)
        return (
            of([row[:n] for row, n in zip(rows, lengths)]),
            of([np.full(n, i + 1) for i, n in numbers]),
            of([np.arange(n) for n in lengths]),
        )

    sources, source_segments, source_positions = packed(source, read, 24)
    targets, segments, positions = packed(target, written, 21)
    more = {"source_segments": source_segments, "source_positions": source_positions}
    found = zoo.our_answer(ours, sources, targets, **more, segments=segments, positions=positions)
    s0 = t0 = 0
    for row, (s, t) in enumerate(zip(read, written)):
        alone = zoo.their_answer(model, source[row : row + 1, :s], target[row : row + 1, :t])
        here = (found[0][0, s0 : s0 + s], *(x[0, t0 : t0 + t] for x in found[1:]))
        assert_same(here, [x[0] for x in alone])
        s0, t0 = s0 + s, t0 + t
