from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from residuum.engine import ENGINES
from residuum.errors import InputError
from residuum.model import ModelConfig, Transformer
from residuum.train.recipe import FOLDER, DataConfig, OptimConfig, Recipe, RunConfig, as_dict, load_recipe
from residuum.train.schedule import learning_rate, weight_decay


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.toml")))
def test_built_in_recipes_load_and_survive_toml(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(as_dict(recipe)))
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize(
    ("name", "vocab_size", "parameters"),
    [
        ("quick", None, 1_474_688),
        ("gpt", None, 13_964_160),
        ("bitnet-arithmetic", 14, 1.2e6),
        ("bitnet", None, 12e6),
        ("bitnet-95m", None, 95e6),
        ("bitnet-2b4t", None, 2.4e9),
    ],
)
def test_recipes_are_as_large_as_they_say(name: str, vocab_size: int | None, parameters: float) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"):
        model = Transformer(replace(recipe.model, vocab_size=vocab_size or recipe.data.vocab_size))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.02)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optim]\nlrr = 1", r"no key 'optim.lrr': did you mean 'optim.lr'\?"),
        ("[optimizer]\nlr = 1", r"no key 'optimizer': did you mean 'optim'\?"),
        ("[model]\nzzz = 1", "no key 'model.zzz': it may hold vocab_size, context"),
        ("model = 3", r"'model' is a section: write \[model\]"),
        ("[model]\nd_model = 'wide'", "model.d_model is 'wide': give an int"),
        ("[model]\nd_model = 1.5", "model.d_model is 1.5: give an int"),
        ("[model]\ncausal = 1", "model.causal is 1: give a bool"),
        ("[model]\nn_layers = true", "model.n_layers is True: give an int"),
        (
            "[model]\nactivation = 'tanh'",
            "model.activation is 'tanh': choose gelu, relu, squared_relu, swiglu, squared_reglu",
        ),
        (
            "[model]\nresidual = 'prenorm'",
            "model.residual = 'prenorm' is no residual connection",
        ),
        ("[model]\nn_layers = 9999999999", "model.n_layers is 9999999999: give at most 100,000"),
        ("[run]\nseed = 100000000000000000000000000", "run.seed is .*: give at most 4,294,967,295"),
        ("[run]\ndir = ''", "run.dir is empty"),
        ("[data]\nsource = ''", "data.source is empty"),
        ("[optim]\nmin_lr = 2.0", "optim.min_lr = 2.0 is above optim.lr"),
        ("[optim]\nlr = -1.0", "optim.lr is -1.0: give a number above 0"),
        ("[optim]\nweight_decay = inf", "optim.weight_decay is inf: give a finite number"),
        ("[optim]\nlr = 1" + 400 * "0", "more digits than a float can hold"),
        ("x = " + 5000 * "[", "bad.toml"),
        ("[model]\nd_model = 10\nn_heads = 4", "model.d_model = 10 is not divisible by model.n_heads = 4"),
        ("[run]\nsteps = 0", "run.steps is 0: give at least 1"),
        ("[optim]\nlr = 0\nmin_lr = 0", "optim.lr is 0.0: give a number above 0"),
        ("[optim]\nlr = nan", "optim.lr is nan"),
        ("[optim]\nclip = nan", "optim.clip is nan"),
        ("[optim]\nbeta2 = 1", "optim.beta2"),
        ("[data]\nheld_out = 0", "data.held_out"),
        ("[model]\ncausal = false", "model.causal"),
        ("[model\n", "recipe .*bad.toml"),
        ("[optim]\nengine = 'explicit'", "no key 'optim.engine': write engine on top of the file, above the first"),
        ("[run]\nengine = 'explicit'", "no key 'run.engine': write engine on top of the file, above the first section"),
    ],
)
def test_mistakes_name_the_field_and_the_mend(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_recipe(str(path))
    assert "\n" not in str(error.value)
    assert "bad.toml" in str(error.value)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_names_are_for_every_engine(engine: str) -> None:
    assert replace(load_recipe("names"), engine=engine).engine == engine


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"precision": "bfloat16"}, "run.precision = 'bfloat16' is nothing for engine = 'scalar', which computes in f"),
        ({"device": "cuda:1"}, "run.device = 'cuda:1' is nothing for engine = 'scalar', which is plain Python: leave"),
    ],
)
def test_the_scalar_engine_takes_neither_another_type_nor_a_device(run: dict, message: str) -> None:
    names = load_recipe("names")
    with pytest.raises(InputError, match=f"^{message}"):
        replace(names, engine="scalar", run=replace(names.run, **run))
    replace(names, engine="scalar", run=replace(names.run, precision="float32", device="cpu"))
    replace(names, engine="autograd", run=replace(names.run, **run))


def test_no_such_recipe() -> None:
    with pytest.raises(InputError, match=r"no recipe 'quik': choose bitnet, .*gpt, names, quick, or give the path"):
        load_recipe("quik")


def test_every_field_explains_itself() -> None:
    for section in (RunConfig, DataConfig, OptimConfig, ModelConfig, Recipe):
        source = inspect.getsource(section)
        for field in dataclasses.fields(section):
            if section is Recipe and field.name != "engine":
                continue  # a section, whose fields explain themselves
            assert re.search(rf'^    {field.name}: .*\n    """', source, re.MULTILINE), (
                f"{section.__name__}.{field.name}"
            )


def test_schedule() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.1, warmup=4)
    rates = [learning_rate(step, 14, config) for step in range(14)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[13] == pytest.approx(0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    linear = OptimConfig(lr=1.0, min_lr=0.1, warmup=4, decay="linear")
    assert learning_rate(9, 15, linear) == pytest.approx(0.55)
    constant = OptimConfig(lr=1.0, min_lr=0.1, warmup=0, decay="constant")
    assert {learning_rate(step, 14, constant) for step in range(14)} == {1.0}


def test_the_two_stage_schedule_falls_at_half_time() -> None:
    """The published 700M run: 1.5e-3 and 1e-3 towards 3e-5, with the fall from 7.7e-4 to 5.2e-4 in the middle."""
    config = OptimConfig(lr=1.5e-3, second_lr=1e-3, min_lr=3e-5, warmup=375, decay="two-stage")
    steps = 100_001
    rates = [learning_rate(step, steps, config) for step in range(steps)]
    assert rates[374] == 1.5e-3
    assert rates[375:] == sorted(rates[375:], reverse=True)
    assert (rates[50_000], rates[50_001]) == (pytest.approx(7.65e-4, rel=1e-3), pytest.approx(5.15e-4, rel=1e-3))
    assert rates[-1] == pytest.approx(3e-5)
    decays = [weight_decay(step, steps, config) for step in (0, 50_000, 50_001, 100_000)]
    assert decays == [0.1, 0.1, 0.0, 0.0]
    assert OptimConfig(lr=1.5e-3, decay="two-stage").second_peak == pytest.approx(1e-3)
    assert weight_decay(9, 10, OptimConfig()) == 0.1


@pytest.mark.parametrize(
    "values", [{"second_lr": 1e-3}, {"decay": "two-stage", "lr": 1e-3, "min_lr": 1e-4, "second_lr": 1e-5}]
)
def test_a_second_line_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"optim\.second_lr"):
        OptimConfig(**values)


def test_a_runs_recipe_is_a_recipe(tmp_path: Path) -> None:
    recipe = Recipe()
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps({**as_dict(recipe), "made_with": {"torch": "2"}}))
    assert load_recipe(str(path)) == recipe
    assert tomllib.loads(path.read_text())["made_with"] == {"torch": "2"}
