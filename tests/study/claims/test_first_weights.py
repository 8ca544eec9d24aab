"""Claims about first weights: their experiments on tiny settings with a known answer, their judges both ways."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from residuum.model import ModelConfig, Transformer
from residuum.model.residual.pre import Pre
from residuum.study.claims import (
    gradient_location,
    no_connection_gradient,
    no_norm_variance,
    pre_norm_growth,
    sum_of_writes,
    zero_identity,
)
from residuum.study.claims.without_skip import NORMED
from residuum.study.register import judge
from residuum.study.store import Store


@pytest.mark.parametrize("module", [zero_identity, no_norm_variance])
def test_what_holds_at_once(module: Any, tmp_path: Path) -> None:
    (found,) = judge([module.CLAIM], Store(tmp_path), quick=True)
    assert found.said == "holds", found.sentence


def test_zero_writes_leave_the_stream_and_ordinary_ones_do_not() -> None:
    settings = {"residual": "pre", "branch_init": "zero", "n_layers": 3, "seed": 0}
    zero = zero_identity.moved_at_start(settings)
    assert zero["moved"] == zero["relative"] == 0 and zero["gradient"] > 0
    ordinary = zero_identity.moved_at_start({**settings, "branch_init": "residual"})
    assert ordinary["relative"] > 0.05
    say = zero_identity.CLAIM.judge
    assert say([zero, ordinary], True).outcome == "holds"
    assert say([{**zero, "moved": 1e-9}, ordinary], True).figures["failed"] == ["pre with zero writes"]
    assert say([{**zero, "gradient": 0.0}, ordinary], True).outcome == "does not hold"
    assert say([zero, {**ordinary, "relative": 0.0}], True).outcome == "does not hold"


def test_the_ends_of_the_stream_are_those_the_blocks_see() -> None:
    for residual in ("pre", "post"):  # with a final norm, and without
        model = Transformer(ModelConfig(vocab_size=9, context=4, d_model=8, n_layers=2, n_heads=2, residual=residual))
        tokens = torch.zeros(1, 4, dtype=torch.long)
        first, last = zero_identity.ends_of_stream(model, tokens)
        x = first
        for block in model.blocks:
            x = block(x)
        assert torch.equal(x, last)
        assert torch.equal(first, model.embedding(tokens) + model.positions(0, 4))


def test_what_begins_the_stream_is_not_counted_as_a_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pre, "begin", lambda self, x: 3 * x)
    moved = zero_identity.moved_at_start({"residual": "pre", "branch_init": "zero", "n_layers": 1, "seed": 0})["moved"]
    assert moved == 0


def test_writes_add_up() -> None:
    settings = {"residual": "pre", "n_layers": 2, "steps": 0, "seed": 0}
    pre = sum_of_writes.gap_of_sum(settings)
    assert pre["gap"] < 1e-14
    post = sum_of_writes.gap_of_sum({**settings, "residual": "post"})
    assert post["gap"] > 0.1
    say = sum_of_writes.CLAIM.judge
    trained = {**pre, "steps": 20}
    assert say([pre, trained, post], True).outcome == "holds"
    assert say([pre, {**trained, "gap": 1e-9}, post], True).outcome == "does not hold"
    assert say([pre, trained, {**post, "gap": 0.0}], True).outcome == "does not hold"


def test_a_gradient_that_comes_back_refutes() -> None:
    def outcome(normed: float, pre: float, otherwise: float = 1e-9) -> str:
        """Where `normed` and `pre` are what Xavier's weights give, and all others without connections `otherwise`."""
        ratios = {(NORMED, "xavier"): normed, ("pre", "xavier"): pre, ("pre", "gpt2"): 1.0}
        figures = [
            {**cell.settings, "ratio": ratios.get((cell.settings["residual"], cell.settings["weights"]), otherwise)}
            for cell in no_connection_gradient.CLAIM.cells(True)
        ]
        return no_connection_gradient.CLAIM.judge(figures, True).outcome

    gpt2 = "no norm and GPT-2's first weights", "norms and GPT-2's first weights"
    assert outcome(1e-4, 0.5) == "holds"
    assert outcome(0.5, 0.5) == f"holds under {gpt2[0]}; no norm and Xavier's first weights; {gpt2[1]}"
    assert outcome(1e-4, 0.05) == f"holds under {gpt2[0]}; {gpt2[1]}"
    assert outcome(0.5, 0.5, 0.5) == "does not hold"


def test_norms_let_the_gradient_through(tmp_path: Path) -> None:
    (found,) = judge([no_connection_gradient.CLAIM], Store(tmp_path), quick=True)
    assert found.outcome is not None
    without = found.outcome.figures["without"]
    assert without["no norm and Xavier's first weights"] < 1e-3 < 0.01 < without["norms and Xavier's first weights"]


def test_variance_without_norm_multiplies() -> None:
    bare = no_norm_variance.variance_by_layer({"norm": False, "n_layers": 6, "seed": 0})
    assert len(bare["variances"]) == 7 and bare["second_half"] == bare["variances"][6] / bare["variances"][3]
    assert bare["log_growth"] > 0
    say = no_norm_variance.CLAIM.judge
    line = {"norm": True, "second_half": 1.9, "exponential_r2": 0.8, "log_growth": 0.1}
    assert say([bare, line], True).outcome == "holds"
    assert say([{**bare, "second_half": 1.9}, line], True).outcome == "does not hold"
    assert say([{**bare, "exponential_r2": 0.9}, line], True).outcome == "does not hold"


def test_sizes_are_those_of_the_states(monkeypatch: pytest.MonkeyPatch) -> None:
    found = pre_norm_growth.size_by_depth({"n_layers": 3, "steps": 0, "seed": 0})
    assert len(found["sizes"]) == 7 and found["grown"] == found["sizes"][6] / found["sizes"][0]
    assert found["trend"] == pytest.approx(1) and 0.2 < found["power"] < 1

    def silence(model: Transformer) -> None:
        for _, branch in model.connections():
            torch.nn.init.zeros_(branch.value_path()[1][0].weight)

    monkeypatch.setattr(pre_norm_growth, "xavier", silence)
    still = pre_norm_growth.size_by_depth({"n_layers": 3, "steps": 0, "seed": 0})
    assert still["grown"] == pytest.approx(1) and still["power"] == pytest.approx(0, abs=1e-6)


def test_growth_is_judged_in_both_parts() -> None:
    first = {"steps": 0, "power": 0.55, "trend": 1.0, "grown": 9.0}
    trained = {"steps": 9, "power": 2.0, "trend": 0.95, "grown": 3.0}
    say = pre_norm_growth.CLAIM.judge
    assert say([first, trained], True).outcome == "holds"
    assert say([{**first, "power": 0.7}, trained], True).outcome.startswith("holds under training")
    assert say([first, {**trained, "trend": 0.5}], True).outcome == "does not hold"
    assert say([first, {**trained, "grown": 1.5}], True).outcome == "does not hold"


def test_the_gradients_of_a_layer_are_judged_by_place_and_by_depth() -> None:
    found = gradient_location.gradient_of_layers({"residual": "post", "n_layers": 3, "seed": 0})
    assert len(found["norms"]) == 3 and min(found["norms"]) > 0

    def figures(post: float, pre_power: float) -> list[dict[str, Any]]:
        by_depth = [(4, 1.0), (16, 4.0)]
        return [
            *({"residual": "post", "n_layers": n, "norms": [1.0, post]} for n, _ in by_depth),
            *(
                {"residual": "pre", "n_layers": n, "norms": [1.0, math.sqrt(by) ** (2 * pre_power)]}
                for n, by in by_depth
            ),
        ]

    say = gradient_location.CLAIM.judge
    outcome = say(figures(3.0, -0.5), True)
    assert outcome.outcome == "holds"
    assert outcome.figures["pre_slope"] == pytest.approx(-0.5) and outcome.figures["post_slope"] == pytest.approx(0)
    assert say(figures(1.5, -0.5), True).outcome == "does not hold"
    assert say(figures(3.0, 0.0), True).outcome == "does not hold"
    assert say(figures(3.0, 0.2), True).outcome == "does not hold"
    seeds = [*figures(3.0, -0.5), {"residual": "post", "n_layers": 16, "norms": [1.0, 5.0]}]
    assert "is 3 to 5 times the first one's in Post-LN" in say(seeds, False).sentence
