import pytest

from pretrain.report.curves import BUCKETS, smooth, thin


def test_a_running_mean_of_a_straight_line_is_the_line():
    line = [float(i) for i in range(500)]
    assert smooth(line) == pytest.approx(line)


def test_a_running_mean_takes_noise_away_and_keeps_both_ends():
    noisy = [2.0 + (-1) ** i * 0.5 for i in range(1000)]
    mean = smooth(noisy)
    assert max(abs(x - 2.0) for x in mean[20:-20]) < 0.05
    assert (mean[0], mean[-1]) == (noisy[0], noisy[-1])


def test_a_running_mean_leaves_gaps_open():
    assert smooth([1.0, None, 3.0]) == [1.0, None, 3.0]
    assert smooth([None, None]) == [None, None]
    assert smooth([]) == []


def test_few_points_are_all_drawn():
    assert thin([1.0] * 100, [None] * 100) == list(range(100))


def test_many_points_are_thinned_without_losing_a_spike_of_any_curve():
    n = 200_000
    loss, norm = [2.0 + i % 7 for i in range(n)], [1.0 + i % 5 for i in range(n)]
    loss[77_777], norm[123_456] = 50.0, 99.0
    kept = thin(loss, norm)
    assert {0, 77_777, 123_456, n - 1} <= set(kept)
    assert len(kept) <= 4 * BUCKETS + 2
    assert kept == sorted(set(kept))
