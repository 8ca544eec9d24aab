"""The engine that a run asks for its gradients: which there are, what is refused and when, and what is written down."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomli_w
import torch

from residuum.cli import main
from residuum.engine import ENGINES, make_engine
from residuum.errors import InputError
from residuum.model import ModelConfig, Transformer
from residuum.train import Recipe, RunFolder, load, load_recipe, train
from residuum.train.batches import Batches
from residuum.train.optimizer import make_optimizer
from residuum.train.recipe import DataConfig, OptimConfig, RunConfig, as_dict
from residuum.train.schedule import learning_rate
from residuum.train.text import read_corpus
from residuum.train.tokenizer import ByteTokenizer, tokenize

TOML = """
[run]
steps = 3
eval_every = 3
eval_tokens = 100
sample_tokens = 0
checkpoint_every = 2
[data]
source = "{source}"
held_out = 0.3
[model]
context = 16
d_model = 12
n_layers = 2
n_heads = 3
dropout = 0.2
[optim]
batch_size = 3
accumulate = 3
warmup = 2
"""


@pytest.fixture
def recipe(text_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TOML.format(source=text_folder))
    return path


def weights(path: Path) -> bytes:
    return (path / "checkpoints" / "step_00000003" / "model.safetensors").read_bytes()


def test_autograd_is_the_default(recipe: Path, tmp_path: Path) -> None:
    assert main(["train", str(recipe), "--run.dir", str(tmp_path / "a")]) == 0
    assert main(["train", str(recipe), "--run.dir", str(tmp_path / "b"), "--engine", "autograd"]) == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert (tmp_path / "a" / "recipe.toml").read_bytes() == (tmp_path / "b" / "recipe.toml").read_bytes()
    assert 'engine = "autograd"' in (tmp_path / "a" / "recipe.toml").read_text()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_is_pytorch_bit_for_bit(precision: str, text_folder: Path, tmp_path: Path) -> None:
    """Written out again, the forward pass under autocast and the backward pass outside: with dropout it matters."""
    chosen = Recipe(
        RunConfig(steps=3, eval_tokens=100, sample_tokens=0, device="cpu", precision=precision),
        DataConfig(source=str(text_folder), held_out=0.3),
        ModelConfig(context=16, d_model=12, n_layers=2, n_heads=3, dropout=0.2),
        OptimConfig(batch_size=3, accumulate=3, warmup=2, lr=1e-2),
    )
    ours = train(RunFolder.create(tmp_path / "run"), chosen)
    torch.manual_seed(0)
    plain = Transformer(ours.config)
    optimizer = make_optimizer(plain, chosen.optim, torch.device("cpu"))
    batches = Batches(tokenize(ByteTokenizer(), read_corpus(chosen.data).train), 16, 3, seed=0)
    for step in range(3):
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 3, chosen.optim)
        optimizer.zero_grad()
        for micro in range(3):
            x, y = batches.at(step, micro)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                loss = plain.loss(x, y) / 3
            loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
    for (name, p), q in zip(plain.named_parameters(), ours.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize(
    ("top", "run", "message"),
    [
        ("engine = 'warp'", "", "engine = 'warp' is no engine: choose autograd"),
        ("engine = 3", "", "engine = 3 is no engine: choose autograd"),
        ("engine = ['autograd']", "", r"engine = \['autograd'\] is no engine: choose autograd"),
        ("engin = 'autograd'", "", r"no key 'engin': did you mean 'engine'\?"),
        ("engine = 'explicit'", "keep = 'some'", "run.keep = 'some' .* give everything, block-inputs or every-4"),
        ("engine = 'explicit'", "keep = 'every-0'", "run.keep = 'every-0' is nothing that can be kept"),
        ("engine = 'explicit'", "keep = 'every-'", "run.keep = 'every-' is nothing that can be kept"),
        ("", "keep = 4", "run.keep is 4: give a str"),
        ("", "keep = 'every-4'", "run.keep is the explicit engine's: set engine to explicit, or leave"),
        ("engine = 'autograd'", "keep = 'block-inputs'", "run.keep is the explicit engine's"),
        (
            "engine = 'scalar'",
            "compile = true",
            "run.compile is the explicit engine's: set engine",
        ),
        ("engine = 'explicit'", "keep = 'every-2'\ncompile = true", "run.compile keeps everything"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    top: str, run: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_text(f"{top}\n[run]\n{run}\n")
    with pytest.raises(InputError, match=message) as error:
        load_recipe("bad.toml")
    assert "\n" not in str(error.value)


def test_an_unknown_engine_on_the_command_line(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe), "--run.dir", str(tmp_path / "run"), "--engine", "warp"]) == 2
    assert capsys.readouterr().err == f"residuum: engine = 'warp' is no engine: choose {', '.join(ENGINES)}\n"
    assert not (tmp_path / "run").exists()


class Picky:
    """An engine that a model may be too deep, or a vocabulary too large, for."""

    def check(self, config: ModelConfig) -> None:
        if config.n_layers > 2:
            raise InputError("model.n_layers is more than the picky engine takes: set it to 2")
        if config.vocab_size > 256:
            raise InputError("data.vocab_size is more than the picky engine takes: choose data.tokenizer byte")


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "picky", "picky:Picky")
    monkeypatch.setitem(sys.modules, "residuum.engine.picky", SimpleNamespace(Picky=Picky))


@pytest.mark.usefixtures("picky")
def test_what_an_engine_cannot_run_is_refused_before_anything_is_written(
    recipe: Path, text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    start = ["train", str(recipe), "--run.dir", str(path)]
    assert main([*start, "--engine", "picky", "--model.n-layers", "3"]) == 2
    assert "model.n_layers is more than the picky engine takes" in capsys.readouterr().err
    assert main([*start, "--engine", "picky", "--data.tokenizer", "bpe", "--data.vocab-size", "300"]) == 2
    assert "data.vocab_size is more than the picky engine takes" in capsys.readouterr().err
    assert not path.exists()
    assert main([*start, "--model.n-layers", "3", "--run.steps", "1"]) == 0
    text = (path / "recipe.toml").read_text()
    (path / "recipe.toml").write_text(text.replace('engine = "autograd"', 'engine = "picky"'))
    capsys.readouterr()
    assert main(["train", "--resume", str(path)]) == 2
    assert "model.n_layers is more than the picky engine takes" in capsys.readouterr().err


def test_only_the_explicit_engine_is_told_what_to_keep() -> None:
    assert make_engine("explicit", "every-4").segment == 4
    assert make_engine("explicit", "block-inputs").segment == 1
    assert make_engine("explicit").segment is None
    with pytest.raises(InputError, match=r"run\.keep is the explicit engine's"):
        make_engine("autograd", "every-4")


def test_a_recipe_survives_toml_with_its_engine(tmp_path: Path) -> None:
    recipe = replace(Recipe(), engine="explicit", run=RunConfig(keep="every-2"))
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(as_dict(recipe)))
    assert path.read_text().startswith('engine = "explicit"\n')
    assert load_recipe(str(path)) == recipe


def test_a_run_from_before_there_were_engines_goes_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_it_was(recipe: Recipe) -> dict:
        content = as_dict(recipe)
        del content["engine"], content["run"]["keep"]
        return content

    assert main(["train", str(recipe), "--run.dir", str(tmp_path / "new")]) == 0
    old = tmp_path / "old"

    class Stop:
        def note(self, text: str) -> None: ...

        def step(self, line: dict[str, float], steps: int) -> None:
            if line["step"] == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("residuum.train.run_folder.as_dict", as_it_was)
        train(RunFolder.create(old), load_recipe(str(recipe)), Stop())
    before = (old / "recipe.toml").read_bytes()
    assert b"engine" not in before
    assert b"keep =" not in before
    assert [p.name for p in (old / "checkpoints").iterdir()] == ["step_00000002"]
    assert main(["train", "--resume", str(old)]) == 0
    assert (old / "recipe.toml").read_bytes() == before
    assert weights(old) == weights(tmp_path / "new")
    assert load(old).config == load(tmp_path / "new").config


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_the_scalar_engine_stays_on_the_cpu(
    device: str, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there is a cuda device, which auto would take."""
    names = load_recipe("names")
    tiny = replace(names.model, d_model=4, n_heads=2, context=8)
    run = replace(names.run, steps=2, eval_tokens=16, sample_tokens=0, device=device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    recipe = replace(names, engine="scalar", run=run, model=tiny, optim=replace(names.optim, batch_size=1))
    model = train(RunFolder.create(tmp_path / "run"), recipe)
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_three_engines_make_the_same_run(tmp_path: Path) -> None:
    names = load_recipe("names")
    tiny = replace(names.model, d_model=8, n_heads=2, context=8)
    run = replace(names.run, steps=4, eval_tokens=64, log_every=1, sample_tokens=0, device="cpu")
    lines = {}
    for engine in ENGINES:
        recipe = replace(names, engine=engine, run=run, model=tiny, optim=replace(names.optim, batch_size=2))
        train(RunFolder.create(tmp_path / engine), recipe)
        lines[engine] = RunFolder.open(tmp_path / engine).metrics()[1:]
    for engine in ("explicit", "scalar"):
        for ours, theirs in zip(lines[engine], lines["autograd"], strict=True):
            for key in ("loss", "grad_norm", "train_bits_per_byte"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-5), (engine, ours["step"], key)
    assert len({line["loss"] for line in lines["scalar"]}) == 4


def test_who_watches_hears_of_every_step(recipe: Path, tmp_path: Path) -> None:
    class Watcher:
        def __init__(self) -> None:
            self.heard: list[float] = []

        def note(self, text: str) -> None: ...

        def step(self, line: dict, steps: int) -> None:
            self.heard.append(line["step"])

    watcher = Watcher()
    chosen = load_recipe(str(recipe))
    train(RunFolder.create(tmp_path / "run"), chosen, watcher)
    assert watcher.heard == [1, 2, 3]
    assert [line["step"] for line in RunFolder.open(tmp_path / "run").metrics()] == [0, 1, 3]
