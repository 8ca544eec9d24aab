"""Lines and ranks."""

from __future__ import annotations

import pytest

from residuum.study.trend import line, rank_correlation


def test_a_line_through_points_on_it_and_beside_it() -> None:
    assert line([0, 1, 3], [1, 3, 7]) == pytest.approx((2, 1, 1))
    slope, intercept, r2 = line([0, 1, 2, 3], [0, 2, 1, 3])
    assert (slope, intercept, r2) == pytest.approx((0.8, 0.3, 0.64))
    assert line([1, 2], [5, 5]) == pytest.approx((0, 5, 1))


def test_ranks_alone_count() -> None:
    assert rank_correlation([1, 2, 3], [1, 10, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, 4], [1, 2, 2, 3]) == pytest.approx(0.9486833)  # scipy.stats.spearmanr
    assert rank_correlation([1, 2, 3], [5, 5, 5]) == 0
