"""A byte that changed on the disk is an error that names the file, or changes nothing: never another batch."""

import random

import numpy as np
import pytest

from pretrain.data.pack import Packed
from pretrain.data.pipeline import Pipeline, row_hashes
from pretrain.data.windows import Split
from pretrain.errors import UserError
from tests.data.stored import write_split

FLIPS = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("split"), np.random.default_rng(0)
    write_split(folder, [[draw.integers(1, 30_000, n).tolist() for n in draw.integers(5, 300, 40)]], 256)
    return folder


def everything(split: Split) -> tuple:
    pipeline = Pipeline(split, Packed(100), batch=1, shuffle=False)
    rows = range(pipeline.plan.rows)
    hashes = [row_hashes(pipeline.rows(row)) for row in rows]
    return hashes, [pipeline.sources(row, 0) for row in rows], split.document_lengths().tolist()


@pytest.mark.parametrize(
    "name", ["train-00000.array_record", "train-00000.documents.array_record", "train-00000.places"]
)
def test_a_flipped_bit_is_named_or_changes_nothing(folder, name):
    expected, path, draw = everything(Split(folder, "train")), folder / name, random.Random(1)
    data = path.read_bytes()
    written = [i for i, byte in enumerate(data) if byte]  # the format fills its blocks up with zeros
    named = errors = 0
    try:
        for place in draw.sample(written, FLIPS):
            changed = bytearray(data)
            changed[place] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
            try:
                found = everything(Split(folder, "train"))
            except UserError as error:
                found, named = None, named + (path.name in str(error))
                errors += 1
            assert found in (expected, None)
            with pytest.raises(UserError, match=name.replace(".", r"\.")):
                Split(folder, "train").verify()
    finally:
        path.write_bytes(data)
    assert named == errors > FLIPS / 2  # the rest are in bytes that no reader needs
    Split(folder, "train").verify()


@pytest.mark.parametrize("name", ["manifest.json", "train-00000.json"])
def test_another_digit_or_letter_in_what_a_corpus_says_of_itself_is_named(folder, name):
    expected, path, draw = everything(Split(folder, "train")), folder / name, random.Random(2)
    text = path.read_text()
    told = [i for i, letter in enumerate(text) if letter.isalnum()]
    try:
        for place in draw.sample(told, 60):
            other = draw.choice([x for x in "0123456789abcdef" if x != text[place]])
            path.write_text(text[:place] + other + text[place + 1 :])
            with pytest.raises(UserError, match=name.replace(".", r"\.")):
                everything(Split(folder, "train"))
    finally:
        path.write_text(text)
    assert everything(Split(folder, "train")) == expected


def test_a_damaged_table_of_fitted_rows_is_made_again(folder):
    from pretrain.data.fit import Fit

    split = Split(folder, "train")
    expected = np.array(Fit.of(split, 100).table)
    (path,) = folder.glob("fit-train-100-*.npy")
    whole = path.read_bytes()
    for place in (len(whole) // 2, len(whole) - 3, 140):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert np.array_equal(Fit.of(split, 100).table, expected)
        assert path.read_bytes() == whole
    path.write_bytes(whole[:60])
    assert np.array_equal(Fit.of(split, 100).table, expected)


def test_a_worker_maps_the_table_of_fitted_rows_and_gets_no_copy(folder):
    import pickle

    from pretrain.data.fit import Fit

    fit = Fit.of(Split(folder, "train"), 100)
    fit.lengths = len  # in place of the split, which has its own size
    assert len(pickle.dumps(fit)) < 400
    assert isinstance(pickle.loads(pickle.dumps(fit)).table, np.memmap)
