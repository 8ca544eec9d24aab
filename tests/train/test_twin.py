"""The full-precision twin of a ternary run: the same batches, a folder of its own, one report for both."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from residuum.cli import main
from residuum.errors import InputError
from residuum.study.training import training_cell
from residuum.train import Recipe, RunFolder, load, load_recipe, train, train_twin
from residuum.train.batches import Batches
from residuum.train.loop import Diverged, Silent, new_model
from residuum.train.recipe import OptimConfig, as_dict, recipe_from

TOML = """
engine = "{engine}"
[run]
steps = 6
log_every = 1
eval_every = 3
eval_tokens = 100
sample_tokens = 4
checkpoint_every = 2
[data]
source = "{source}"
held_out = 0.3
tokenizer = "bpe"
vocab_size = 270
[model]
context = 16
d_model = 12
n_layers = 2
n_heads = 3
dropout = 0.2
linear = "ternary"
[optim]
batch_size = 3
accumulate = 2
lr = 1e-2
second_lr = 5e-3
twin_lr = 2e-3
min_lr = 1e-3
warmup = 2
decay = "two-stage"
"""


def write(folder: Path, source: Path, engine: str = "autograd") -> Path:
    path = folder / f"{engine}.toml"
    path.write_text(TOML.format(engine=engine, source=source))
    return path


@pytest.fixture
def recipe(text_folder: Path, tmp_path: Path) -> Path:
    return write(tmp_path, text_folder)


@pytest.fixture(scope="module")
def whole(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A pair that nothing stopped, and what its training said."""
    folder, said = tmp_path_factory.mktemp("whole"), StringIO()
    with redirect_stdout(said):
        args = ["train", str(write(folder, text_folder)), "--twin", "--run.dir", str(folder / "run")]
        assert main(args) == 0
    return folder / "run", said.getvalue()


def outcome(path: Path) -> dict[str, Any]:
    """What must not depend on interruptions, of a run and of its twin."""
    found = {}
    for folder in (RunFolder.open(path), RunFolder.open(path).twin):
        last = folder.checkpoints / "step_00000006"
        found[folder.path.name == "twin"] = (
            *((last / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer")),
            [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in folder.metrics()],
            folder.samples_file.read_text(),
            folder.recipe_file.read_text(),
            sorted(each.name for each in folder.path.iterdir()),
        )
    return found


def test_its_recipe_is_the_same_but_for_precision_and_rate(recipe: Path) -> None:
    given = load_recipe(str(recipe))
    twin = given.full_precision()
    ours, theirs = as_dict(given), as_dict(twin)
    differ = {
        f"{section}.{key}"
        for section in ("run", "data", "model", "optim")
        for key in ours[section].keys() | theirs[section].keys()
        if ours[section].get(key) != theirs[section].get(key)
    }
    assert differ == {
        "model.linear", "optim.lr", "optim.min_lr", "optim.decay", "optim.second_lr", "optim.twin_lr",
    }  # fmt: skip
    assert (twin.optim.lr, twin.optim.min_lr, twin.optim.decay) == (2e-3, pytest.approx(2e-4), "cosine")
    same = recipe_from({**ours, "optim": {"lr": 3e-3, "min_lr": 1e-3, "warmup": 7}}, "test").full_precision()
    assert same.optim == OptimConfig(lr=3e-3, min_lr=1e-3, warmup=7)


@pytest.mark.parametrize("engine", ["autograd", "explicit"])
def test_both_read_the_same_batches_from_the_same_weights(
    engine: str, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[torch.Tensor, ...]] = []
    at = Batches.at
    monkeypatch.setattr(Batches, "at", lambda *args: read.append(at(*args)) or read[-1])
    given, folder = load_recipe(str(write(tmp_path, text_folder, engine))), RunFolder.create(tmp_path / "run")
    train(folder, given)
    ours, read[:] = list(read), []
    twin = train_twin(folder)
    assert len(ours) == len(read) == 12
    assert all(
        torch.equal(a, b) for one, other in zip(ours, read, strict=True) for a, b in zip(one, other, strict=True)
    )

    assert twin.config.linear == "float" and load(folder.twin.path).config == twin.config
    given = folder.recipe
    first, second = (
        dict(new_model(each, torch.device("cpu")).named_parameters()) for each in (given, given.full_precision())
    )
    assert {name for name in first if name not in second} == {
        f"blocks.{block}.{name}.norm.gain" for block in range(2) for name in ("attn.out", "ff.down")
    }
    assert all(torch.equal(first[name], second[name]) for name in second)

    alone = train(RunFolder.create(tmp_path / "alone"), given.full_precision())
    assert all(torch.equal(p, q) for p, q in zip(alone.parameters(), twin.parameters(), strict=True))


class Stop(Silent):
    """Who watches it stops it after `step`."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, line: dict[str, Any], steps: int) -> None:
        if line["step"] == self.at:
            raise KeyboardInterrupt


def test_a_stopped_pair_goes_on_with_what_is_unfinished(whole: tuple[Path, str], recipe: Path, tmp_path: Path) -> None:
    unbroken = outcome(whole[0])
    given = recipe_from({**as_dict(load_recipe(str(recipe))), "twin": True}, "test")

    first = RunFolder.create(tmp_path / "first")
    with pytest.raises(KeyboardInterrupt):
        train(first, given, Stop(3))
    assert not first.twin.path.exists()
    second = RunFolder.create(tmp_path / "second")
    train(second, given)
    for step in (1, 5):  # before the first checkpoint, and after the second
        with pytest.raises(KeyboardInterrupt):
            train_twin(second, Stop(step))
    assert sorted(path.name for path in second.twin.checkpoints.iterdir()) == ["step_00000002", "step_00000004"]
    for folder in (first, second):
        assert main(["train", "--resume", str(folder.path)]) == 0
        assert outcome(folder.path) == unbroken
    third = RunFolder.create(tmp_path / "third")
    train(third, given)
    third.twin.path.mkdir()
    third.twin.tokenizer_file.write_text("half")  # killed before its recipe was written
    train_twin(third)
    assert main(["train", "--resume", str(third.twin.path)]) == 0  # a run as any other
    assert main(["train", "--resume", str(third.path)]) == 0
    assert outcome(third.path) == unbroken


def test_the_report_shows_both(whole: tuple[Path, str]) -> None:
    path, shown = whole
    assert "ternary  step      6/6  loss" in shown and "twin  step      6/6  loss" in shown
    ours, theirs = (RunFolder.open(each).metrics()[-1]["bits_per_byte"] for each in (path, path / "twin"))
    said = f"{ours - theirs:+.3f} bits per byte ({ours:.3f}, {theirs:.3f}) after 6 steps".replace("-", "−")
    said = f"15 × smaller matrices, {said}"  # of so few weights that the size of a level counts
    assert f"against its full-precision twin: {said}\n" in shown
    assert max(map(len, (line for line in shown.splitlines() if "ternary" in line or "gradient’s" in line))) <= 110
    page = (path / "report.html").read_text()
    assert "Beside its full-precision twin" in page and said in page
    assert "Ternary weights and eight-bit activations" in page
    own = (path / "twin" / "report.html").read_text().partition("<script>")[0]
    assert "Beside its" not in own and "Ternary weights" not in own and "Training" in own
    assert main(["audit", str(path / "twin"), "--fail-on", "never"]) == 0
    assert main(["generate", str(path / "twin"), "--max-new-tokens", "3"]) == 0


def test_a_twin_that_diverges_leaves_the_run_its_report(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverge(*_: object) -> None:
        raise Diverged("training diverged at step 3", 3)

    monkeypatch.setattr("residuum.cli.train.train_twin", diverge)
    path = tmp_path / "run"
    assert main(["train", str(recipe), "--twin", "--run.dir", str(path)]) == 2
    assert capsys.readouterr().err == "residuum: training diverged at step 3\n"
    page = (path / "report.html").read_text()
    assert "Ternary weights and eight-bit activations" in page and "Beside its full-precision twin" not in page


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("quick", "--twin"),
            "twin = true is nothing for model.linear = 'float', which is full precision: leave --twin",
        ),
        (("bitnet", "--twin", "--optim.twin-lr", "0"), "optim.twin_lr is 0.0: give a number above 0"),
        (("bitnet", "--twin", "--optim.twin-lr", "1e99"), "optim.min_lr is 2e+97: give at most"),
        (("wrong.toml",), "twin is 3: give true or false"),
        (("below.toml",), "no key 'run.twin': write twin on top of the file, above the first section"),
    ],
)
def test_mistakes_are_one_line(
    args: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.toml").write_text("twin = 3\n")
    Path("below.toml").write_text("[run]\ntwin = true\n")
    assert main(["train", *args, "--run.dir", "run"]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not Path("run").exists()


def test_text_that_has_changed_is_refused(text_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for file in text_folder.iterdir():
        (text / file.name).write_text(file.read_text())
    path = tmp_path / "tiny.toml"
    path.write_text(TOML.format(engine="autograd", source=text))
    folder = RunFolder.create(tmp_path / "run")
    train(folder, load_recipe(str(path)))
    (text / "00.txt").write_text("other words\n")
    with pytest.raises(InputError, match=r"the text of data\.source is not what .*twin was trained on"):
        train_twin(folder)


def test_a_study_trains_no_twin_and_its_cells_stay_what_they_were(text_folder: Path) -> None:
    content = {"data": {"source": str(text_folder), "held_out": 0.3}, "model": {"linear": "ternary", "context": 16}}
    plain, paired = (training_cell(recipe_from({**content, "twin": twin}, "test"), "") for twin in (False, True))
    assert plain.key == paired.key and "twin" not in json.dumps(plain.settings)
    assert Recipe().twin is False
