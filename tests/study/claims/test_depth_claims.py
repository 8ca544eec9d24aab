"""Claims about what trains at which depth: their judges, on figures made up both ways, and one real product."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from residuum.model import ModelConfig, Transformer
from residuum.study.claims import (
    composite_gain,
    multi_stream,
    no_connection_training,
    post_norm_warmup,
    pre_norm_depth,
    two_hundred_layers,
)
from residuum.study.claims.claim import Outcome, Undecided
from residuum.study.depth import REFERENCE_LAYERS

UNIGRAM, REFERENCE_BITS = 4.5, 3.5
TRAINED, FAILED = 3.9, 4.4  # 60% and 10% of what the reference gained


def judged(module: Any, bits: dict[Any, float | None], quick: bool = True) -> Outcome:
    """The outcome if text costs `bits` of (connection, layers, warm-up, lr, weights), or of as much as is given."""
    figures = []
    for cell in module.CLAIM.cells(quick):
        model, optim = cell.settings["model"], cell.settings["optim"]
        key = model["residual"], model["n_layers"], optim["warmup"] > 0, optim["lr"], model["branch_init"]
        reference = key[:2] == ("pre", REFERENCE_LAYERS)
        value = (
            REFERENCE_BITS if reference else next(b for k, b in bits.items() if k in (key, key[:4], key[:3], key[0]))
        )
        figures.append({"bits_per_byte": value, "unigram_bits_per_byte": UNIGRAM})
    return module.CLAIM.judge(figures, quick)


@pytest.mark.parametrize("quick", [True, False])
def test_without_connections(quick: bool) -> None:
    assert judged(no_connection_training, {"none": FAILED, "pre": TRAINED}, quick).outcome == "holds"
    assert judged(no_connection_training, {"none": TRAINED, "pre": TRAINED}, quick).outcome == "does not hold"
    assert judged(no_connection_training, {"none": FAILED, "pre": FAILED}, quick).outcome == "does not hold"


def test_great_depth() -> None:
    assert judged(pre_norm_depth, {"pre": TRAINED}).outcome == "holds"
    assert judged(pre_norm_depth, {"pre": FAILED}).outcome == "does not hold"
    some = judged(two_hundred_layers, {"weighted": TRAINED, "rezero": None, "deepnorm": TRAINED})
    assert some.outcome == "holds under weighted and deepnorm" and "rezero: diverged" in some.sentence
    assert judged(two_hundred_layers, dict.fromkeys(("weighted", "rezero", "deepnorm"), TRAINED)).outcome == "holds"
    assert judged(two_hundred_layers, dict.fromkeys(("weighted", "rezero", "deepnorm"))).outcome == "does not hold"


def test_warmup() -> None:
    with_it, without = ("post", 14, True), ("post", 14, False)
    assert judged(post_norm_warmup, {with_it: TRAINED, without: FAILED}).outcome == "holds"
    assert judged(post_norm_warmup, {with_it: TRAINED, without: TRAINED}).outcome == "does not hold"
    assert judged(post_norm_warmup, {with_it: FAILED, without: FAILED}).outcome == "does not hold"
    gpt2 = judged(post_norm_warmup, {(*with_it, 1e-3, "gpt2"): TRAINED, "post": FAILED})
    assert gpt2.outcome == "holds under 14 layers at 0.001 from GPT-2's weights"
    full = {(*with_it, 1e-3, "residual"): TRAINED, "post": FAILED}
    found = judged(post_norm_warmup, full, quick=False)
    assert found.outcome == "holds under 14 layers at 0.001 from Xavier's weights"
    deep = judged(post_norm_warmup, {("post", 24, True, 3e-3): TRAINED, **full}, quick=False)
    assert deep.outcome == "holds"


def test_a_reference_that_learned_nothing_judges_nobody() -> None:
    count = len(pre_norm_depth.CLAIM.cells(True))
    with pytest.raises(Undecided, match=r"less than 0\.2: give more --steps"):
        pre_norm_depth.CLAIM.judge([{"bits_per_byte": 4.4, "unigram_bits_per_byte": UNIGRAM}] * count, True)


@pytest.mark.parametrize(
    ("pre", "longer", "outcome"),
    [(3.0, 2.9, "holds"), (3.0, 2.7, "holds under equal steps"), (2.7, 2.6, "does not hold")],
)
def test_several_streams(pre: float, longer: float, outcome: str) -> None:
    bits = [pre, pre + 0.01, pre - 0.01, *(2.8, 2.81, 2.79) * 2, longer, longer + 0.01, longer - 0.01]
    assert multi_stream.CLAIM.judge([{"bits_per_byte": b} for b in bits], True).outcome == outcome
    assert multi_stream.CLAIM.judge([{"bits_per_byte": None}, *({"bits_per_byte": b} for b in bits[1:])], True).sentence


def test_pre_norm_gets_more_steps_than_the_others() -> None:
    cells = multi_stream.CLAIM.cells(True)
    steps = [(cell.settings["model"]["residual"], cell.settings["run"]["steps"]) for cell in cells]
    assert steps[:3] == [("pre", 300)] * 3 and steps[-3:] == [("pre", 375)] * 3


def test_a_gain_is_that_of_the_product() -> None:
    model = Transformer(
        ModelConfig(
            vocab_size=9, context=4, d_model=8, n_layers=2, n_heads=2, residual="hyper-connections", residual_streams=2
        )
    )
    tokens = torch.zeros(1, 4, dtype=torch.long)
    assert composite_gain._gain(model, tokens) == pytest.approx(1, abs=0.05)  # the identity, but for tiny scales
    with torch.no_grad():
        for connection, _ in model.connections():
            connection.mix.copy_(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    assert composite_gain._gain(model, tokens) == pytest.approx(5, abs=0.3)  # [[1, 4], [0, 1]]
    rows = [{"residual": name, "n_layers": 2, "gain": 5.0, "gain_at_start": 1.0} for name in composite_gain.NAMES]
    assert composite_gain.CLAIM.judge(rows, True).outcome == "does not hold"
    rows[1]["gain"] = 1.0
    assert composite_gain.CLAIM.judge(rows, True).outcome == "holds"
    rows[0]["gain"] = 1.05
    assert composite_gain.CLAIM.judge(rows, True).outcome == "holds under mHC alone"
