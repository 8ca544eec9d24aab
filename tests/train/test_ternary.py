"""What a run says of its ternary weights."""

import json
from pathlib import Path

import pytest
import torch

from residuum.engine import make_engine
from residuum.model import ModelConfig, Transformer
from residuum.model.quantise import unrounded
from residuum.train import RunFolder, load_recipe, train
from residuum.train.recipe import Recipe, as_dict, recipe_from
from residuum.train.ternary import FLIPS_OVER, Flips, activation_levels, bit_maps, estimator_cosine, shares

SHAPE = {"vocab_size": 31, "context": 8, "d_model": 12, "n_layers": 2, "n_heads": 2, "linear": "ternary"}


def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(**SHAPE))


def small() -> Recipe:
    content = as_dict(load_recipe("names"))
    content["model"] |= {"linear": "ternary", "d_model": 16, "n_layers": 1, "n_heads": 2}
    content["run"] |= {"steps": 2 * FLIPS_OVER, "log_every": 70, "eval_every": 150, "eval_tokens": 256}
    content["run"] |= {"sample_tokens": 0, "checkpoint_every": FLIPS_OVER}
    return recipe_from(content, "test")


def test_shares_count_every_weight() -> None:
    one = model()
    weight = bit_maps(one)["blocks.0.attn.q"].weight
    with torch.no_grad():
        weight.zero_()
        weight[0, :6] = 1.0
        weight[1, :3] = -1.0
    found = shares(one)
    assert found["blocks.0.attn.q"] == pytest.approx([3 / 144, 135 / 144, 6 / 144])
    assert len(found) == 12
    assert all(sum(row) == pytest.approx(1) for row in found.values())


def test_flips_are_levels_that_changed() -> None:
    one = model()
    flips, weight = Flips(one), bit_maps(one)["blocks.1.ff.down"].weight
    assert flips.at(0) is None  # nothing to compare with
    assert flips.at(FLIPS_OVER - 1) is None
    with torch.no_grad():
        levels = (weight / weight.abs().mean()).round().clamp(-1, 1)
        weight[0, 0] = -weight.abs().mean() * (1 if levels[0, 0] > 0 else -1) * 2
    changed = flips.at(FLIPS_OVER)
    assert changed is not None
    assert changed["blocks.1.ff.down"] >= 1 / weight.numel()
    assert changed["blocks.0.ff.down"] == 0
    assert Flips(Transformer(ModelConfig(**{**SHAPE, "linear": "float"}))).at(0) is None


def test_the_estimator_is_compared_with_the_gradient_of_a_floating_point_twin() -> None:
    one, engine = model(), make_engine("explicit")
    batch = (torch.randint(31, (2, 8)), torch.randint(31, (2, 8)))
    engine.loss_and_grads(one, batch)
    before = {name: p.grad.clone() for name, p in one.named_parameters() if p.grad is not None}
    found = estimator_cosine(engine, one, batch)
    assert {name: p.grad for name, p in one.named_parameters() if p.grad is not None}.keys() == before.keys()
    assert all(torch.equal(p.grad, before[name]) for name, p in one.named_parameters() if p.grad is not None)
    assert max(found.values()) < 0.95  # a model of this width is rounded roughly, ...
    assert sum(found.values()) / len(found) > 0.3  # ... and yet by no means anyhow

    twin = Transformer(ModelConfig(**{**SHAPE, "linear": "float", "sub_norm": False}))
    plain = Transformer(ModelConfig(**{**SHAPE, "sub_norm": False}))
    plain.load_state_dict(twin.state_dict())
    with unrounded():
        torch.testing.assert_close(plain(batch[0]), twin(batch[0]))
    assert not torch.allclose(plain(batch[0]), twin(batch[0]))


def test_activations_are_counted_by_level() -> None:
    one = model().train()
    tokens = torch.randint(31, (2, 8))
    found = activation_levels(one, tokens)
    assert one.training and found.keys() == bit_maps(one).keys()
    assert found["blocks.0.attn.q"] == found["blocks.0.attn.k"]  # which read the same
    assert all(1 / 48 <= top < 0.5 for _, top in found.values())  # each token's largest entry is at the top itself
    rows = torch.tensor([[127.0, 0.4, 0.6, 0.0], [-127.0, 127.0, 0.0, 0.0]])
    seen = []
    down = one.blocks[0].ff.down
    down.norm = None
    down.register_forward_pre_hook(lambda *_: seen.append(True) or (rows.repeat(1, 12)[:, None, :].repeat(1, 8, 1),))
    found = activation_levels(one, tokens)
    assert seen
    assert found["blocks.0.ff.down"] == pytest.approx([1 / 8, 3 / 8])  # what is 0 anyway is not rounded to 0


def test_a_run_says_it_in_its_metrics_and_again_after_a_resume(tmp_path: Path) -> None:
    def lines(folder: RunFolder) -> list[dict[str, object]]:
        found = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in found]

    whole = RunFolder.create(tmp_path / "whole")
    train(whole, small())
    everything = {"flips", "ternary_shares", "estimator_cosine", "activation_levels"}
    said = {line["step"]: set(line) & everything for line in lines(whole)}
    assert said == {
        0: set(), 1: set(), 70: set(), 100: {"flips"}, 140: set(), 150: everything - {"flips"}, 200: everything,
    }  # fmt: skip

    broken = RunFolder.create(tmp_path / "broken")
    content = as_dict(small())
    train(broken, small())
    for path in broken.checkpoints.glob("step_00000200/*"):
        path.unlink()
    (broken.checkpoints / "step_00000200").rmdir()
    train(RunFolder.open(broken.path), recipe_from(content, "test"))
    assert lines(broken) == lines(whole)
