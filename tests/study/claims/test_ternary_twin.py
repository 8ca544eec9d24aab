"""The claim of the twins: what is compared, and its judge on figures made up both ways."""

from __future__ import annotations

from typing import Any

import pytest

from residuum.study.claims.claim import Outcome, Undecided
from residuum.study.claims.ternary_twin import CLAIM, MARGIN, RATES, SEEDS, TERNARY, TWIN


def judged(*rows: float | None, quick: bool = True) -> Outcome:
    """The outcome where each row of seeds costs that much, but for a hundredth more or less."""
    figures: list[dict[str, Any]] = [
        {"bits_per_byte": bits if bits is None else bits + noise} for bits in rows for noise in (0, 0.01, -0.01)
    ]
    assert len(figures) == len(CLAIM.cells(quick))
    return CLAIM.judge(figures, quick)


def test_only_precision_width_and_rates_differ() -> None:
    cells = CLAIM.cells(True)
    twin, ternary, wide = (cell.settings for cell in cells[::SEEDS])
    assert [s["model"]["linear"] for s in (twin, ternary, wide)] == ["float", "ternary", "ternary"]
    assert 2 * twin["model"]["d_model"] == 2 * ternary["model"]["d_model"] == wide["model"]["d_model"]
    for part in ("run", "data"):
        assert twin[part] == ternary[part] == wide[part]
    for key in ("batch_size", "accumulate", "warmup", "weight_decay"):
        assert len({s["optim"][key] for s in (twin, ternary, wide)}) == 1
    assert [cell.settings["run"]["seed"] for cell in cells] == [0, 1, 2] * 3


def test_the_margin_is_the_sources_own() -> None:
    assert pytest.approx(0.017, abs=5e-4) == MARGIN  # (ln 12.87 − ln 12.33) / ln 12.33


def test_each_outcome() -> None:
    assert judged(3.0, 3.04, 3.5).outcome == "holds"
    assert judged(3.0, 3.2, 3.04).outcome == "holds under twice the width"
    assert judged(3.0, 3.2, 3.1).outcome == "does not hold"
    better = judged(3.0, 2.9, 2.8)
    assert better.outcome == "holds" and "(fewer)" in better.sentence
    diverged = judged(3.0, 3.04, None)
    assert diverged.outcome == "holds" and "twice as wide diverged at every rate" in diverged.sentence
    assert judged(3.0, None, 2.9).outcome == "holds under twice the width"
    assert judged(3.0, None, None).outcome == "does not hold"
    with pytest.raises(Undecided, match="the full-precision twin diverged"):
        judged(None, 2.9, 2.9)


def test_noise_counts_against_it() -> None:
    figures = [{"bits_per_byte": bits} for bits in (3.0, 3.0, 3.0, 2.9, 3.0, 3.1, 3.2, 3.2, 3.2)]
    assert CLAIM.judge(figures, True).outcome == "does not hold"


def test_in_full_the_best_of_each_ones_rates_is_compared() -> None:
    found = judged(*(3.3, 3.0, None, 3.1), *(3.5, 3.4, 3.2, 3.02), *(3.2, 3.3, 3.4), quick=False)
    assert found.outcome == "holds"
    assert found.figures[TWIN]["bits_per_byte"] == pytest.approx(3.0)
    assert (found.figures[TWIN]["lr"], found.figures[TERNARY]["lr"]) == (RATES[TWIN] / 2, 2 * RATES[TERNARY])
    said = ("(rate 0.002); ternary", "(rate 0.004, the highest tried)", "(rate 0.001, the lowest tried)")
    assert all(words in found.sentence for words in said)
