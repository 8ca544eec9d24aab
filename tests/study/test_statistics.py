"""Student's t against printed tables and against what has a closed form."""

from __future__ import annotations

import math

import pytest

from residuum.study.statistics import interval, paired, t_quantile

# Quantiles as every textbook prints them.
PRINTED = {
    (0.975, 1): 12.706, (0.975, 2): 4.303, (0.975, 3): 3.182, (0.975, 4): 2.776, (0.975, 5): 2.571, (0.975, 9): 2.262,
    (0.975, 10): 2.228, (0.975, 30): 2.042, (0.975, 120): 1.980, (0.95, 7): 1.895, (0.995, 4): 4.604, (0.9, 3): 1.638,
}  # fmt: skip


@pytest.mark.parametrize(("given", "printed"), PRINTED.items())
def test_quantiles_are_the_printed_ones(given: tuple[float, int], printed: float) -> None:
    assert abs(t_quantile(*given) - printed) <= 0.0005 + 1e-12


@pytest.mark.parametrize("p", [0.5, 0.6, 0.75, 0.9, 0.975, 0.999])
def test_quantiles_with_a_closed_form(p: float) -> None:
    assert t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-9, abs=1e-12)
    assert t_quantile(p, 2) == pytest.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)), rel=1e-9, abs=1e-12)


def test_an_interval_by_hand() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half == pytest.approx(0.95 / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3), rel=1e-12)
    assert not found.excludes_zero and str(found) == "2.000 ± 2.484"
    alone = interval([0.5])
    assert (alone.mean, alone.half, alone.excludes_zero, str(alone)) == (0.5, None, False, "0.500")


def test_pairs_take_the_seed_s_own_noise_away() -> None:
    a, b = [1.0, 5.0, 9.0], [0.9, 4.89, 8.9]
    assert paired(a, b).excludes_zero
    assert not interval(a).excludes_zero
    assert paired(b, a).mean == pytest.approx(-paired(a, b).mean)
    with pytest.raises(ValueError):
        paired(a, b[:2])
