"""Claims about what trains at which depth: their judges, on figures made up both ways, and one real product."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

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
from residuum.study.claims.depth_claim import Verdict
from residuum.study.claims.without_skip import NORMED, NORMED_XAVIER
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
    def outcome(bare: float, normed: float, pre: float) -> str:
        bits = {"none": bare, NORMED_XAVIER: normed, "pre": pre}
        return judged(no_connection_training, bits, quick).outcome

    assert outcome(FAILED, FAILED, TRAINED) == "holds"
    assert outcome(FAILED, TRAINED, TRAINED) == "holds under y = f(x)"
    assert outcome(TRAINED, FAILED, TRAINED) == "holds under y = f(norm(x))"
    assert outcome(TRAINED, TRAINED, TRAINED) == "does not hold"
    assert outcome(FAILED, FAILED, FAILED) == "does not hold"


def test_the_network_without_a_skip_has_norms_and_xaviers_weights() -> None:
    shape = {"vocab_size": 31, "context": 4, "d_model": 64, "n_layers": 2, "n_heads": 2}
    model = Transformer(ModelConfig(**shape, residual=NORMED_XAVIER))
    x = torch.randn(3, 4, 64)
    connection, branch = next(iter(model.connections()))
    torch.testing.assert_close(connection(x, branch), branch(torch.nn.functional.layer_norm(x, (64,))))
    assert model.blocks[0].ff.down.weight.std().item() == pytest.approx((2 / (64 + 256)) ** 0.5, rel=0.05)
    assert Transformer(ModelConfig(**shape, residual=NORMED)).blocks[0].ff.down.weight.std().item() < 0.02


def test_great_depth() -> None:
    assert judged(pre_norm_depth, {"pre": TRAINED}).outcome == "holds"
    assert judged(pre_norm_depth, {"pre": FAILED}).outcome == "does not hold"


def test_two_hundred_layers_are_judged_where_post_norm_fails() -> None:
    def say(control: float | None = None, **bits: float | None) -> Outcome:
        known = {"post": control, "pre": FAILED, "weighted": TRAINED, "deepnorm": TRAINED}
        return judged(two_hundred_layers, {**known, **bits})

    assert say(rezero=TRAINED).outcome == say(FAILED, rezero=TRAINED, pre=TRAINED).outcome == "holds"
    some = say(rezero=None)
    assert some.outcome == "holds under weighted and deepnorm" and "rezero: diverged" in some.sentence
    assert say(rezero=None, weighted=FAILED, deepnorm=None).outcome == "does not hold"
    with pytest.raises(Undecided, match="should fail trains too: weighted: gained 60%"):
        say(TRAINED, rezero=FAILED)


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
    shallow = judged(post_norm_warmup, {("post", 6, True): TRAINED, "post": FAILED}, quick=False)
    assert shallow.outcome == "does not hold" and "6 layers at 0.001" in shallow.sentence


def test_a_rate_whose_reference_learned_nothing_is_left_out() -> None:
    cells, figures = post_norm_warmup.CLAIM.cells(False), []
    for cell in cells:
        model, lr = cell.settings["model"], cell.settings["optim"]["lr"]
        bits = TRAINED if (model["n_layers"], cell.settings["optim"]["warmup"] > 0) == (14, True) else FAILED
        if model["residual"] == "pre":
            bits = FAILED if lr == 3e-4 else REFERENCE_BITS
        figures.append({"bits_per_byte": bits, "unigram_bits_per_byte": UNIGRAM})
    found = post_norm_warmup.CLAIM.judge(figures, False)
    assert "14 layers at 0.001 from Xavier's" in found.outcome and "0.0003" not in found.outcome
    assert "0.0003 from GPT-2's weights: trainable is not judged" in found.sentence


def test_what_diverged_is_not_in_the_mean_and_is_said() -> None:
    assert str(Verdict(1, 3, 0.92, 2)) == "1 of 3 seeds trained, gained 92% but for 2 that diverged"
    assert str(Verdict(0, 3, None, 3)) == "0 of 3 seeds trained, diverged"
    assert str(Verdict(3, 3, 1.0, 0)) == "3 of 3 seeds trained, gained 100%"


def test_a_reference_that_learned_nothing_judges_nobody() -> None:
    count = len(pre_norm_depth.CLAIM.cells(True))
    with pytest.raises(Undecided, match=r"less than 0\.2: give more --steps"):
        pre_norm_depth.CLAIM.judge([{"bits_per_byte": 4.4, "unigram_bits_per_byte": UNIGRAM}] * count, True)


@pytest.mark.parametrize(
    ("pre", "longer", "longest", "outcome"),
    [
        (3.0, 2.9, 2.9, "holds"),
        (3.0, 2.9, 2.7, "holds under equal steps"),
        (3.0, 2.7, 2.9, "holds under equal steps"),
        (2.7, 2.6, 2.6, "does not hold"),
    ],
)
def test_several_streams(pre: float, longer: float, longest: float, outcome: str) -> None:
    rows = [[bits, bits + 0.01, bits - 0.01] for bits in (pre, 2.8, 2.8, longer, longest)]

    def say(*diverged: int) -> Outcome:
        figures = [None if place in diverged else bits for place, bits in enumerate(chain(*rows))]
        return multi_stream.CLAIM.judge([{"bits_per_byte": bits} for bits in figures], True)

    assert say().outcome == outcome
    lost = say(7)
    assert lost.outcome == "does not hold" and lost.sentence == "mhc diverged in some seed"
    for place in (0, 10, 13):
        with pytest.raises(Undecided, match="Pre-LN diverged"):
            say(place)


def test_pre_norm_gets_more_steps_than_the_others_products_come_to() -> None:
    cells = multi_stream.CLAIM.cells(True)
    steps = [(cell.settings["model"]["residual"], cell.settings["run"]["steps"]) for cell in cells]
    assert steps[:3] == [("pre", 300)] * 3
    assert steps[-6:] == [("pre", 375)] * 3 + [("pre", 480)] * 3
    for quick in (True, False):
        names = ("pre", *multi_stream.EXTRA)
        pre, *others = (products(multi_stream._grid(quick).recipe(name, 8, True, 0).model) for name in names)
        for name, own in zip(multi_stream.EXTRA, others, strict=True):
            assert 1.1 * pre < own < multi_stream.EXTRA[name] * pre, name


def products(shape: ModelConfig) -> int:
    """Multiplications of all matrix products in a forward and a backward pass."""
    model, tokens = Transformer(shape), torch.zeros(2, shape.context, dtype=torch.long)
    with FlopCounterMode(display=False) as count:
        model.loss(tokens, tokens).backward()
    return count.get_total_flops()


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
    assert composite_gain.CLAIM.judge(rows, True).outcome == "holds under hyper-connections alone"
    assert composite_gain.CLAIM.judge([{**rows[0], "gain": 1.0}, rows[1]], True).outcome == "does not hold"
    rows[1]["gain"] = 1.0
    assert composite_gain.CLAIM.judge(rows, True).outcome == "holds"
    rows[0]["gain"] = 1.05
    assert composite_gain.CLAIM.judge(rows, True).outcome == "holds under mHC alone"
    uneven = [{**rows[0], "gain": 9.0}, {**rows[1], "gain": 1.0}, {**rows[1], "gain": 1.02}]
    found = composite_gain.CLAIM.judge(uneven, False)
    assert found.outcome == "holds under hyper-connections alone" and "mHC within 0.0200 of 1" in found.sentence
