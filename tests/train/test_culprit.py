"""A loss or a gradient that is not finite stops a run before the update, and the one line says who made it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residuum.cli import main
from residuum.engine.autograd import Autograd
from residuum.errors import InputError
from residuum.model import ModelConfig, Transformer
from residuum.model.feedforward import ACTIVATIONS, Activation, gelu_backward
from residuum.stream import TraceError, where_nan
from residuum.train import Recipe, RunFolder, train
from residuum.train.batches import Batches
from residuum.train.recipe import DataConfig, OptimConfig, RunConfig
from residuum.train.text import read_corpus
from residuum.train.tokenizer import ByteTokenizer, tokenize

Plant = Callable[[Transformer], None]


@pytest.fixture
def recipe(text_folder: Path) -> Recipe:
    return Recipe(
        RunConfig(steps=6, log_every=1, eval_every=2, eval_tokens=100, sample_tokens=0, checkpoint_every=2),
        DataConfig(source=str(text_folder), held_out=0.3),
        ModelConfig(context=16, d_model=12, n_layers=2, n_heads=3, head="untied"),
        OptimConfig(batch_size=2, accumulate=2, warmup=2),
    )


class Planting:
    """Watches a run, and plants a fault in its model once `after` steps are done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, plant: Plant, after: int = 3) -> None:
        self.plant, self.after = plant, after
        monkeypatch.setattr("residuum.train.loop.Transformer", self._build)

    def _build(self, config: ModelConfig) -> Transformer:
        self.model = Transformer(config)
        return self.model

    def note(self, text: str) -> None: ...

    def step(self, line: dict[str, float], steps: int) -> None:
        if line["step"] == self.after:
            self.plant(self.model)


def diverges(path: Path, recipe: Recipe, planting: Planting) -> str:
    """The one line. What every case must keep is asked here: the checkpoint from before, and logs without NaN."""
    folder = RunFolder.create(path)
    with pytest.raises(InputError, match=r"^training diverged at step 4 \(loss ") as error:
        train(folder, recipe, planting)
    said = str(error.value)
    assert "\n" not in said
    assert f"; step_00000002 stays (residuum train --resume {path} repeats what came after it); " in said
    assert said.endswith(
        "start a new run with a lower optim.lr (0.001) or a longer optim.warmup (2): "
        f"residuum train {path / 'recipe.toml'} --run.dir ANOTHER --optim.lr 0.0001"
    )
    checkpoint = folder.newest_checkpoint()  # verifies each byte
    assert checkpoint is not None
    assert checkpoint.step == 2
    steps = [
        json.loads(line, parse_constant=pytest.fail)["step"] for line in folder.metrics_file.read_text().splitlines()
    ]
    assert steps == [0, 1, 2, 3]
    return said


def poisoned(name: str, value: float) -> Plant:
    def plant(model: Transformer) -> None:
        with torch.no_grad():
            model.get_parameter(name)[0, 0] = value

    return plant


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_poisoned_weight(precision: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(recipe, run=replace(recipe.run, precision=precision))
    said = diverges(tmp_path / "run", recipe, Planting(monkeypatch, poisoned("blocks.1.ff.down.weight", math.inf)))
    assert ": batch 1 of step 4: parameter blocks.1.ff.down.weight holds infinity already; " in said


class Armed:
    """A feed-forward's activation that turns bad when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bad: Callable[[Tensor], Tensor]) -> None:
        self.bad, self.armed = bad, False
        monkeypatch.setitem(ACTIVATIONS, "gelu", Activation(self.__call__, gelu_backward))

    def arm(self, model: Transformer) -> None:
        self.armed = True

    def __call__(self, x: Tensor) -> Tensor:
        return self.bad(x) if self.armed else F.gelu(x)


def line_of(function: Callable) -> str:
    return f"test_culprit.py:{function.__code__.co_firstlineno}"


def test_an_operation_in_the_forward_pass(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = lambda x: (x - 100).log()  # noqa: E731
    said = diverges(tmp_path / "run", recipe, Planting(monkeypatch, Armed(monkeypatch, bad).arm))
    assert f": batch 1 of step 4: NaN from blocks.0.ff, in the forward: log at {line_of(bad)}; " in said
    assert "(loss nan, gradient norm nan)" in said


def test_an_operation_in_the_backward_pass(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = lambda x: F.gelu(x) + (x * 0).sqrt()  # noqa: E731
    said = diverges(tmp_path / "run", recipe, Planting(monkeypatch, Armed(monkeypatch, bad).arm))
    assert re.search(r"\(loss [0-9.]+, gradient norm nan\)", said)
    assert f": batch 1 of step 4: infinity from blocks.1.ff, in the backward: sqrt at {line_of(bad)}; " in said


def test_infinity_in_one_gradient(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plant(model: Transformer) -> None:
        model.get_parameter("blocks.0.attn.out.weight").register_hook(lambda g: torch.full_like(g, math.inf))

    said = diverges(tmp_path / "run", recipe, Planting(monkeypatch, plant))
    assert re.search(r"\(loss [0-9.]+, gradient norm inf\)", said)
    assert ": batch 1 of step 4: a hook on the gradient of parameter blocks.0.attn.out.weight made infinity" in said


def test_the_loss_itself(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plant(model: Transformer) -> None:
        def shift(module: nn.Module, args: object, scores: Tensor) -> Tensor:
            return torch.where(torch.arange(scores.shape[-1]) % 2 == 0, 3e38, -3e38) + 0 * scores

        model.head.register_forward_hook(shift)

    said = diverges(tmp_path / "run", recipe, Planting(monkeypatch, plant))
    assert ": batch 1 of step 4: infinity from the loss, in the forward: cross_entropy at culprit.py:" in said


def test_only_the_second_batch_of_a_step(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Batches(tokenize(ByteTokenizer(), read_corpus(recipe.data).train), 16, 2, recipe.run.seed)
    only_here = set(batches.at(3, 1)[0].unique().tolist()) - set(batches.at(3, 0)[0].unique().tolist())
    token = min(only_here)

    def plant(model: Transformer) -> None:
        with torch.no_grad():
            model.embedding.weight[token] = math.nan

    said = diverges(tmp_path / "run", recipe, Planting(monkeypatch, plant))
    assert ": batch 2 of step 4: parameter embedding.weight holds NaN already; " in said


def test_dropout_is_drawn_the_same_again(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault depends on the very mask that the second batch of the step was trained with."""
    seen: list[float] = []

    def bad(x: Tensor) -> Tensor:
        seen.append(float(x.detach().sum()))
        return F.gelu(x) * (math.nan if seen[-1] in seen[3:4] else 1.0)  # the fourth: two batches, two blocks

    recipe = replace(recipe, model=replace(recipe.model, dropout=0.5))
    said = diverges(tmp_path / "run", recipe, Planting(monkeypatch, Armed(monkeypatch, bad).arm))
    assert ": batch 2 of step 4: NaN from blocks.1.ff, in the forward: mul at test_culprit.py:" in said


class Faulty(Autograd):
    """An engine that spoils the gradients of the model it is told to."""

    def __init__(self, spoil: Callable[[Tensor], object], times: float = math.inf) -> None:
        self.spoil, self.times, self.on = spoil, times, False

    def arm(self, model: Transformer) -> None:
        self.on = True

    def loss_and_grads(self, model: Transformer, batch: tuple[Tensor, Tensor], scale: float = 1.0) -> Tensor:
        loss = super().loss_and_grads(model, batch, scale)
        if self.on and self.times > 0:
            self.times -= 1
            self.spoil(model.embedding.weight.grad)
        return loss


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        (
            Faulty(lambda g: g.fill_(math.nan)),
            "batch 1 of step 4: no operation of autograd's pass over it is seen to make one: the engine did, or",
        ),
        (Faulty(lambda g: g.fill_(1e30)), "every gradient is finite, but their norm overflows; "),
        (Faulty(lambda g: g.fill_(math.nan), 1), "run once more, the same step is finite: the device does not repeat"),
    ],
)
def test_what_no_operation_made(
    engine: Faulty, told: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("residuum.train.loop.make_engine", lambda *options: engine)
    assert f": {told}" in diverges(tmp_path / "run", recipe, Planting(monkeypatch, engine.arm))


def test_a_look_that_fails_is_said(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise TraceError("Transformer's forward pass raised OutOfMemoryError")

    monkeypatch.setattr("residuum.train.culprit.where_nan", fails)
    said = diverges(tmp_path / "run", recipe, Planting(monkeypatch, poisoned("blocks.0.ff.up.weight", math.nan)))
    assert ": batch 1 of step 4: its maker cannot be looked up (Transformer's forward pass raised OutOf" in said


def test_an_update_that_overflows(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither loss nor gradient of that step shows it; its evaluation and its checkpoint would."""
    planting = Planting(monkeypatch, poisoned("blocks.0.ff.up.weight", math.inf), after=0)
    update, done = torch.optim.AdamW.step, []

    def overflow(optimizer: torch.optim.AdamW) -> None:
        update(optimizer)
        done.append(optimizer)
        if len(done) == 4:
            planting.plant(planting.model)

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    said = diverges(tmp_path / "run", recipe, planting)
    assert ": its update left blocks.0.ff.up.weight not finite; " in said


def test_the_run_goes_on_from_its_checkpoint(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        diverges(tmp_path / "run", recipe, Planting(patch, poisoned("embedding.weight", math.nan)))
        whole = train(RunFolder.create(tmp_path / "whole"), recipe)
    resumed = train(RunFolder.open(tmp_path / "run"), RunFolder.open(tmp_path / "run").recipe)
    assert all(torch.equal(p, q) for p, q in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_one_line_and_status_2(
    recipe: Recipe, text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    (tmp_path / "tiny.toml").write_text(
        f'[run]\nsteps = 9\nlog_every = 1\neval_tokens = 100\n[data]\nsource = "{text_folder}"\nheld_out = 0.3\n'
        "[model]\ncontext = 16\nd_model = 12\nn_layers = 2\nn_heads = 3\n[optim]\nbatch_size = 2\nwarmup = 0\n"
    )
    assert main(["train", str(tmp_path / "tiny.toml"), "--run.dir", str(path), "--optim.lr", "1e30"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.match(
        r"residuum: training diverged at step 2 \(loss [\w.]+, gradient norm \w+\): batch 1 of step 2: "
        r"(NaN|infinity) from [\w.]+, in the (forward|backward): \w+ at \w+\.py:\d+; "
        r"no checkpoint was written before it; start a new run with a lower optim\.lr \(1e\+30\)",
        error,
    ), error
    assert not list(path.glob("checkpoints/*"))
    assert "NaN" not in (path / "metrics.jsonl").read_text()


def test_looking_leaves_the_model_as_it_was() -> None:
    """Gradients, weights, mode and chance, while the model trains with dropout, forward at fault or backward."""
    model = Transformer(ModelConfig(vocab_size=31, context=12, d_model=12, n_layers=2, n_heads=3, dropout=0.3))
    x = torch.randint(31, (2, 12))
    model.loss(x, x).backward()
    for weight, value in ((None, 0.0), ("blocks.1.ff.up.weight", math.nan)):
        if weight is not None:
            poisoned(weight, value)(model)
        kept = {name: (p.grad, p.grad.clone(), p.detach().clone()) for name, p in model.named_parameters()}
        chance = torch.get_rng_state()
        found = where_nan(model, x, loss=lambda scores: F.cross_entropy(scores.flatten(0, 1), x.flatten()))
        assert (found is None) == (weight is None)
        assert torch.equal(torch.get_rng_state(), chance)
        assert all(module.training for module in model.modules())
        for name, p in model.named_parameters():
            gradient, as_it_was, held = kept[name]
            assert p.grad is gradient, name
            assert torch.equal(p.grad, as_it_was), name
            assert torch.equal(p.detach().nan_to_num(7.0), held.nan_to_num(7.0)), name


@pytest.mark.parametrize("lr", [1e-3, 5e-4, 1.2345678e-3])
def test_the_advice_is_taken(lr: float, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands after ANOTHER is given to the command, and the run starts: also where lr / 10 is below min_lr."""
    recipe = replace(recipe, optim=replace(recipe.optim, lr=lr))
    planting = Planting(monkeypatch, poisoned("blocks.1.ff.down.weight", math.inf))
    with pytest.raises(InputError) as error:
        train(RunFolder.create(tmp_path / "run"), recipe, planting)
    monkeypatch.undo()
    command = str(error.value).rpartition(": residuum ")[2].replace("ANOTHER", str(tmp_path / "another"))
    assert main([*command.split(), "--run.steps", "1"]) == 0
    assert RunFolder.open(tmp_path / "another").recipe.optim.lr == pytest.approx(lr / 10, rel=1e-5)
