"""Claims about trained networks: their experiments on tiny settings with a known answer, their judges both ways."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from residuum.model import ModelConfig, Transformer
from residuum.study.claims import layer_removal, lora_share, path_length, task_leak
from residuum.study.claims.claim import Undecided
from residuum.study.small import Text


@pytest.fixture(autouse=True)
def _bytes_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the standard library takes seconds, and tests/study/test_small.py does."""
    chance = np.random.default_rng(0)
    train, held_out = (chance.integers(0, 99, size).astype(np.int32) for size in (4000, 1000))
    for module in (layer_removal, lora_share, path_length, task_leak):
        monkeypatch.setattr(module, "text_of", lambda source: Text(train, held_out, 4.6, source))


def tiny(n_layers: int = 2) -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=257, context=8, d_model=16, n_layers=n_layers, n_heads=2))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randint(257, (2, 9), generator=torch.Generator().manual_seed(1))
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def removal(connected: bool, n_layers: int, rises: list[float], loss: float = 2.0) -> dict[str, Any]:
    return {"connected": connected, "n_layers": n_layers, "loss": loss, "unigram": 3.0, "rises": rises}


def test_removing_one_branch_is_judged_in_both_networks() -> None:
    deep, shallow = removal(True, 4, [1.0, 0.5, 0.1, 0.1, 0.1, 0.1, 0.5, 0.4]), removal(True, 1, [0.1, 0.2])
    plain = removal(False, 1, [1.5, 1.0])
    say = layer_removal.CLAIM.judge
    outcome = say([deep, shallow, plain], True)
    assert outcome.outcome == "holds"
    assert outcome.figures["middle"] == pytest.approx(0.1) and outcome.figures["connected_least_rise"] == 0.1
    assert (outcome.figures["costliest"], outcome.figures["costliest_rise"]) == (1, 1.0)
    assert outcome.figures["attentions_alone"] == pytest.approx([0.9, 0.4])
    assert outcome.figures["feed_forwards_alone"] == pytest.approx([0.4, 0.3])
    late = removal(True, 4, [1.0, *[0.5] * 6, 0.4])
    assert say([late, shallow, plain], True).outcome == "holds under plain networks alone"
    assert say([deep, shallow, removal(False, 1, [1.5, 0.9])], True).outcome == "holds under connected networks alone"
    with pytest.raises(Undecided, match=r"2\.80 nats per byte, byte frequencies 3\.00"):
        say([deep, shallow, removal(False, 1, [1.5, 1.0], loss=2.8)], True)
    assert say([late, shallow, removal(False, 1, [0.1, 0.1])], True).outcome == "does not hold"
    noisy = [removal(True, 4, [rise, *[0.1] * 6, 1.0]) for rise in (0.2, 0.9, 0.05)]
    assert say([*noisy, shallow, plain], False).outcome == "holds under plain networks alone"


def test_each_branch_is_taken_out_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_the_second_writes(model: Transformer, *_: Any) -> None:
        for place, (_, branch) in enumerate(model.connections()):
            if place != 1:
                torch.nn.init.zeros_(branch.value_path()[1][0].weight)
            else:
                torch.nn.init.normal_(branch.value_path()[1][0].weight)

    monkeypatch.setattr(layer_removal, "fit", only_the_second_writes)
    found = layer_removal.rises({"connected": True, "n_layers": 2, "steps": 1, "seed": 0})
    assert found["rises"][1] != 0 and [found["rises"][place] for place in (0, 2, 3)] == [0, 0, 0]
    monkeypatch.setattr(layer_removal, "fit", lambda *_: None)
    plain = layer_removal.rises({"connected": False, "n_layers": 1, "steps": 1, "seed": 0})
    assert len(plain["rises"]) == 2 and all(plain["rises"])


def test_paths_add_up_to_the_gradient(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = tiny().double()
    branches, arriving = path_length.unrolled(model, batch)
    n = len(branches)
    assert n == 4
    lengths = path_length.by_length(branches, arriving)
    for k in range(n + 1):
        paths = [path_length.along(branches, arriving, taken) for taken in itertools.combinations(range(n), k)]
        assert torch.allclose(lengths[k], torch.stack(paths).sum(0), rtol=1e-10, atol=1e-18)

    first: list[torch.Tensor] = []
    model.dropout.register_forward_hook(lambda _, __, x: first.append(x))
    loss = model.loss(*batch)
    (whole,) = torch.autograd.grad(loss, first)
    assert torch.allclose(torch.stack(lengths).sum(0), whole, rtol=1e-10, atol=1e-18)


def test_the_gradient_by_length_and_its_judge() -> None:
    found = path_length.gradient_by_length({"n_layers": 2, "steps": 0, "samples": 3, "seed": 0})
    assert len(found["sampled"]) == len(found["summed"]) == 5
    # All paths of length 0 are one path, and so are those of length n.
    for k in (0, 4):
        assert found["sampled"][k] == pytest.approx(found["summed"][k], rel=1e-9)
    assert path_length.share_below_half([3, 1, 1, 1]) == pytest.approx(4 / 6)
    assert path_length.share_below_half([3, 1, 2]) == pytest.approx(0.5)
    assert path_length.mean_length([1, 0, 3]) == pytest.approx(1.5)
    short = {"steps": 5, "sampled": [8.0, 2.0, 0.1], "summed": [8.0, 2.0, 0.1]}
    first = {**short, "steps": 0}
    say = path_length.CLAIM.judge
    assert say([first, {**short, "sampled": [9.5, 0.3, 0.2]}], True).outcome == "holds"
    assert say([first, short], True).outcome == "does not hold"


def test_an_update_writes_what_it_says(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = tiny(1)
    plain = model(batch[0])
    updates = lora_share.adapt(model)
    assert [p.shape for p in model.parameters() if p.requires_grad] == [(4, 16), (16, 4), (4, 64), (16, 4)]
    assert torch.equal(model(batch[0]), plain)
    with torch.no_grad():
        updates[0].b.normal_()
    assert not torch.equal(model(batch[0]), plain)
    states: list[torch.Tensor] = []
    model.blocks[0].attn_residual.register_forward_hook(lambda _, __, state: states.append(state))
    attention, feed_forward = lora_share.shares_of(model, updates, batch[0])
    updates[0].on = False
    assert torch.equal(model(batch[0]), plain)
    # In the first connection the update's write is all that differs.
    assert attention == pytest.approx(float((states[0] - states[1]).norm() / states[0].norm()), rel=1e-5)
    assert feed_forward == 0


def test_share_and_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"n_layers": 1, "base_steps": 2, "steps": 4, "rates": [3e-3, 3e-5, 3e-3], "seed": 0}
    monkeypatch.setattr(lora_share, "SMALL", 1e9)
    found, slower, again = lora_share.shares_and_effects(settings)["at_rates"]
    assert len(found["shares"]) == len(found["effects"]) == 2 and min(found["shares"]) > max(slower["shares"]) > 0
    assert found["small_alone"] == found["adapted"] != found["base"] == slower["base"]
    assert found == again, "every rate begins with the same model and the same updates"
    monkeypatch.setattr(lora_share, "SMALL", 0)
    (found, *_) = lora_share.shares_and_effects(settings)["at_rates"]
    assert found["small_alone"] == found["base"]


def at_rates(*rows: dict[str, Any]) -> dict[str, Any]:
    given = {"base": 3.0, "adapted": 2.0, "small_alone": 2.4, "shares": [0.01, 0.02, 0.2], "effects": [0.1, 0.2, 0.3]}
    return {"at_rates": [{"rate": 0.1 * (1 + place), **given, **row} for place, row in enumerate(rows)]}


def test_share_and_effect_are_judged_rate_by_rate() -> None:
    say = lora_share.CLAIM.judge
    outcome = say([at_rates({}, {"small_alone": 2.5})], True)
    assert outcome.outcome == "holds"
    assert outcome.figures["0.1"]["left"] == pytest.approx(0.6) and outcome.figures["0.1"]["gain"] == 1
    assert outcome.figures["0.1"]["rank_correlation"] == pytest.approx(1)
    assert say([at_rates({}, {"small_alone": 2.6})], True).outcome == "holds under a rate of 0.1"
    assert say([at_rates({"small_alone": 2.6})], True).outcome == "does not hold"
    spread = [at_rates({"small_alone": left}) for left in (2.0, 2.4, 2.6)]
    assert say(spread, False).outcome == "does not hold", "the interval's lower end decides"
    for unfit in ({"shares": [0.06, 0.1, 0.2]}, {"shares": [0.01, 0.02, 0.03]}, {"adapted": 2.95}):
        outcome = say([at_rates({}, {}), at_rates(unfit, {})], False)
        assert outcome.outcome == "holds" and "at a rate of 0.1 " in outcome.sentence
        assert outcome.figures["0.1"]["left"] is None and outcome.figures["0.2"]["left"] is not None
        with pytest.raises(Undecided, match=r"at most 5% of the state .*nothing is asked; .*effect 1\.000"):
            say([at_rates(unfit)], False)


def test_a_read_out_reads_what_is_in_the_state() -> None:
    random = torch.Generator().manual_seed(0)
    targets = torch.randint(4, (400,), generator=random)
    informed = torch.nn.functional.one_hot(targets, 8) * 5 + torch.randn(400, 8, generator=random)
    noise = torch.randn(400, 8, generator=random)
    known, unknown = (task_leak.read_out((x[:300], targets[:300]), (x[300:], targets[300:])) for x in (informed, noise))
    assert known < 0.2 and unknown > 1.3  # ln 4 = 1.39


def test_byte_pairs_are_counted_where_the_read_out_learns() -> None:
    tokens = torch.tensor([[1, 2, 1, 2], [1, 2, 1, 3]])
    often = {2: 4 / 263, 3: 2 / 263}  # of six pairs, and one more of each of 257 bytes
    likely = (3 + 10 * often[2]) / (4 + 10), (1 + 10 * often[3]) / (4 + 10)
    found = task_leak.loss_by_pairs((tokens[:, :-1], tokens[:, 1:]), (torch.tensor([[1, 1]]), torch.tensor([[2, 3]])))
    assert found == pytest.approx(-sum(map(math.log, likely)) / 2)
    flat = task_leak.loss_by_pairs((tokens[:, :0], tokens[:, :0]), (tokens[:, :1], tokens[:, 1:2]))
    assert flat == pytest.approx(math.log(257)), "nothing was counted"


def test_states_are_taken_at_both_places(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = tiny(2)
    ((middle, targets),) = task_leak.states_at(model, "middle", batch)
    ((last, _),) = task_leak.states_at(model, "last", batch)
    assert middle.shape == (16, 16) and torch.equal(targets, batch[1].flatten())
    x = model.embedding(batch[0]) + model.positions(0, 8)
    assert torch.equal(middle, model.blocks[0](x).flatten(0, 1))
    assert torch.equal(last, model.blocks[1](model.blocks[0](x)).flatten(0, 1))


def test_a_leak_is_judged_at_both_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_leak, "read_out", lambda learn, held_out: float(len(learn[0])))
    settings = {"n_layers": 2, "old_steps": 2, "new_steps": 2, "windows": 2, "control": False, "seed": 0}
    found = task_leak.read_outs(settings)
    assert found["middle"] == found["last"] == 2 * 64 and found["before"] is not None
    assert task_leak.read_outs({**settings, "control": True})["before"] is None

    tuned = {"control": False, "before": 2.4, "loss": 5.0, "unigram": 3.0, "middle": 2.5, "last": 2.5}
    control = {"control": True, "before": None, "loss": 6.0, "unigram": 3.0, "middle": 2.7, "last": 2.7}
    tuned, control = ({**given, "pairs": 2.6} for given in (tuned, control))
    say = task_leak.CLAIM.judge
    assert say([tuned, control], True).outcome == "holds"
    assert say([tuned, {**control, "last": 2.55}], True).outcome == "holds under the middle state"
    assert say([tuned, {**control, "middle": 2.5, "last": 2.5}], True).outcome == "does not hold"
    with pytest.raises(Undecided, match=r"not failed at the text yet: 2\.90"):
        say([{**tuned, "loss": 2.9}, control], True)
