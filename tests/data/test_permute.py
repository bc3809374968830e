import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.permute import FEW, permute, unpermute


@settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000))
def test_every_place_is_reached_exactly_once(n, seed, epoch):
    assert sorted(permute(np.arange(n), n, seed=seed, epoch=epoch)) == list(range(n))


@settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 10**15), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000), data=st.data())
def test_every_place_leads_back_to_its_index(n, seed, epoch, data):
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)))
    places = permute(index, n, seed=seed, epoch=epoch)
    assert unpermute(places, n, seed=seed, epoch=epoch).tolist() == index.tolist()
    assert permute(unpermute(index, n, seed=seed, epoch=epoch), n, seed=seed, epoch=epoch).tolist() == index.tolist()


def test_a_part_of_the_permutation_is_the_same_as_the_whole():
    whole = permute(np.arange(1000), 1000, seed=3, epoch=1)
    assert [int(permute(i, 1000, seed=3, epoch=1)) for i in (0, 7, 999)] == [whole[i] for i in (0, 7, 999)]


@settings(max_examples=40, deadline=None)
@given(n=st.integers(FEW + 1, 10**15), seed=st.integers(0, 2**63 - 1), data=st.data())
def test_few_numbers_have_the_places_that_they_have_among_many(n, seed, data):
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=FEW + 1, max_size=FEW + 9)))
    alone = [int(permute(i, n, seed=seed, epoch=3)) for i in index]
    assert permute(index, n, seed=seed, epoch=3).tolist() == alone


def test_ten_billion_windows_need_no_memory():
    n = 10**10 + 7
    places = permute(np.arange(10**5) * 99991, n, seed=1, epoch=0)
    assert len(set(places.tolist())) == 10**5
    assert places.min() >= 0
    assert places.max() < n


def test_the_permutation_of_a_seed_never_changes():
    # A release that changes these numbers would change the batches of every run that resumes.
    assert permute(np.arange(8), 8, seed=0, epoch=0).tolist() == GOLDEN_8
    assert permute(np.array([0, 10**12]), 10**12 + 1, seed=5, epoch=2).tolist() == GOLDEN_LARGE


@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_places_are_uniform_over_seeds_and_epochs(n):
    draws = 4000
    first = np.array([int(permute(0, n, seed=s // 8, epoch=s % 8)) for s in range(draws)])
    counts = np.bincount(first, minlength=n)
    chi_square = ((counts - draws / n) ** 2 / (draws / n)).sum()
    assert chi_square < (n - 1) + 5 * np.sqrt(2 * (n - 1)) + 5


def test_neighbours_are_torn_apart():
    places = permute(np.arange(4096), 4096, seed=9, epoch=0)
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.06


def test_an_index_beyond_the_end_is_refused():
    with pytest.raises(IndexError):
        permute(5, 5, seed=0, epoch=0)


GOLDEN_8 = [0, 7, 1, 3, 6, 5, 4, 2]
GOLDEN_LARGE = [600750140487, 333177839387]
