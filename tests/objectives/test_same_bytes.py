"""Whatever the objective, a row of a batch depends on the seed and its number alone."""

import pickle

import numpy as np
import pytest

from pretrain.data.pipeline import Pipeline, batch_hash, combine, row_hashes, validation_batches
from pretrain.data.rows import shapes
from tests.objectives.zoo import CASES


@pytest.fixture(params=CASES)
def pipeline(request, split):
    return Pipeline(split, CASES[request.param].transform(), batch=8, seed=3)


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_any_number_of_hosts_makes_the_same_bytes(pipeline):
    for step in (0, 7, 10**9):
        whole = pipeline.rows(step)
        for hosts in (2, 4, 8):
            parts = [pipeline.rows(step, slice(h * 8 // hosts, (h + 1) * 8 // hosts)) for h in range(hosts)]
            assert equal(whole, {name: np.concatenate([p[name] for p in parts]) for name in whole})
            assert combine([digest for p in parts for digest in row_hashes(p)]) == batch_hash(whole)


def test_steps_seeds_and_epochs_differ(pipeline):
    steps_of_an_epoch = -(-pipeline.plan.rows // 8)
    other = Pipeline(pipeline.split, pipeline.transform, batch=8, seed=4)
    batches = [pipeline.rows(0), pipeline.rows(1), pipeline.rows(steps_of_an_epoch), other.rows(0)]
    assert len({batch_hash(b) for b in batches}) == 4


def test_a_transform_survives_the_way_to_a_worker(pipeline):
    there = pickle.loads(pickle.dumps(pipeline))
    assert equal(there.rows(5), pipeline.rows(5))


def test_validation_is_the_same_each_time_and_shows_all_rows(pipeline):
    one, two = (list(validation_batches(pipeline.split, pipeline.transform, 8)) for _ in range(2))
    assert all(equal(a, b) for a, b in zip(one, two))
    assert len(one) == -(-pipeline.plan.rows // 8)
    assert {tuple(len(a) for a in b.values()) for b in one} == {(8,) * len(one[0])}
    assert not one[-1]["weights"][(pipeline.plan.rows - 1) % 8 + 1 :].any()


def test_arrays_have_the_stated_shapes_and_types_that_devices_take(pipeline):
    batch = pipeline.rows(0)
    assert {name: (a.shape[1:], a.dtype) for name, a in batch.items()} == shapes(pipeline.transform)
    assert {a.dtype.name for a in batch.values()} == {"int32", "float32"}
    assert batch["weights"].any()


def test_an_empty_row_asks_for_nothing(pipeline):
    raw = pipeline.raw(0)
    empty = pipeline.transform(type(raw)(**{**vars(raw), "lengths": np.zeros(8, np.int64)}))
    assert not empty["weights"].any()
    for name, array in empty.items():
        if name.endswith("segments"):
            assert not array.any(), name


def test_workers_do_not_change_batches(split):
    pipeline = Pipeline(split, CASES["masked"].transform(), batch=8)
    for workers, threads in ((0, 2), (2, 0)):
        got = list(pipeline.iterate(5, stop_step=9, workers=workers, read_threads=threads))
        assert all(equal(batch, pipeline.rows(step)) for step, batch in zip(range(5, 9), got))
        assert len(got) == 4
