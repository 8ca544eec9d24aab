"""One model against another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import residuum.study.training as training
from residuum.cli import main
from residuum.errors import InputError
from residuum.study.cell import experiment
from residuum.study.compare import Comparison, compare, recipes
from residuum.study.store import Store

RECIPE = """
engine = "explicit"
[run]
steps = {steps}
eval_tokens = 128
[data]
source = "{source}"
[model]
context = 16
d_model = {width}
n_layers = 1
n_heads = 1
[optim]
batch_size = 4
warmup = 2
"""


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Post is 0.1 worse than Pre and twice as slow; the seed moves both by 1. With three layers it diverges once."""

    @experiment(version=1, resumes=True)
    def train_once(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
        seed, post = settings["run"]["seed"], settings["model"]["residual"] == "post"
        end = seed + 3 + (0.1 + 0.001 * seed if post else 0)
        steps = settings["run"]["steps"]
        diverged = post and settings["model"]["n_layers"] == 3 and seed == 1
        return {
            "bits_per_byte": None if diverged else end,
            "held_out": [[steps // 2, end + 1], [steps, end]],
            "diverged_at": 5 if diverged else None,
            "unigram_bits_per_byte": 4.5 if settings["model"]["n_layers"] == 8 else 1.0,
            "tokens_per_second": 1000.0 if post else 2000.0,
        }

    monkeypatch.setattr(training, "train_once", train_once)


def test_a_difference_that_only_pairs_show(pretend: None, tmp_path: Path) -> None:
    found = compare("pre", "post", Store(tmp_path))
    assert found.verdict == "pre is lower by 0.101 ± 0.002 bits per byte over 3 seeds"
    assert compare("post", "pre", Store(tmp_path)).verdict == found.verdict
    # When pre is done, post is half way, 1 bit behind its own end.
    assert found.at_equal_time is not None and found.at_equal_time.mean == pytest.approx(-1.101)
    assert found.time is not None and found.time.startswith("a step of post takes 2.00 times one of pre")
    assert found.rows()[0] == ("0", "3.000", "3.100", "-0.100") and found.rows()[-1][0] == "mean"


def test_what_cannot_be_judged_says_why(pretend: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    half = compare("pre", "post", store, shard=(1, 2))
    assert half.verdict == "not judged: 3 cells are not finished" and half.difference is None
    little = compare("pre", "post", store, n_layers=2).verdict
    assert little.endswith("; neither has learned more than byte frequencies (1.00) yet: give more --steps")
    alike = compare("pre", "weighted", store, n_layers=2).verdict
    assert alike.startswith("no difference seen") and "neither has learned more than byte frequencies" in alike
    diverged = compare("pre", "post", store, n_layers=3)
    assert diverged.verdict == "not judged: post diverged with 1 of 3 seeds" and diverged.time is None
    assert ("1", "4.000", "–", "–") in diverged.rows()


def test_other_processors_have_other_times(pretend: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import residuum.study.store as store_module

    store = Store(tmp_path)
    compare("pre", "post", store, shard=(1, 2))
    made_with = {**store_module._made_with(), "cpu": "another"}
    monkeypatch.setattr(store_module, "_made_with", lambda: made_with)
    found = compare("pre", "post", store, shard=(2, 2))
    assert found.difference is not None and found.time is None


def test_an_interval_that_holds_zero() -> None:
    from residuum.study.statistics import paired

    a, b = [1.0, 2.0, 3.0], [1.1, 1.9, 3.0]
    found = Comparison("a", "b", 10, [0, 1, 2], (list(a), list(b)), 0, paired(a, b))
    assert found.verdict.startswith("no difference seen: ") and found.verdict.endswith("and the interval holds 0")


def test_real_recipes(text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, width in (("narrow", 8), ("wide", 32)):
        (tmp_path / f"{name}.toml").write_text(RECIPE.format(steps=20, source=text_folder, width=width))
    a, b = str(tmp_path / "narrow.toml"), str(tmp_path / "wide.toml")
    store = ["--store", str(tmp_path / "store"), "--workers", "1"]
    assert main(["study", "compare", a, b, *store, "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "residuum.study.compare/1" and report["steps"] == 20
    assert report["verdict"].startswith(f"{b} is lower by") and report["difference"]["n"] == 3
    assert main(["study", "compare", a, b, *store]) == 0
    text = capsys.readouterr().out
    assert report["verdict"] in " ".join(text.split())
    assert max(len(line) for line in text.splitlines()) <= max(100, len(b))
    assert main(["study", "compare", a, b, *store, "--format", "md"]) == 0
    assert capsys.readouterr().out.count("\n| ") == 5


def test_bad_pairs_are_refused(text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "store")
    for args, words in (
        (("pre", "quick"), "'pre' is a residual connection and 'quick' is none"),
        (("pre", "pre"), "pre and pre are the same model"),
        (("quick", "gpt"), "data.max_bytes is"),
        (("nothing", "quick"), "no recipe 'nothing'"),
        (("pre", "post", 0), "model.n_layers is 0"),
        (("pre", "post", 2, 3), "--steps is 3"),
    ):
        with pytest.raises(InputError, match=words):
            compare(*args[:2], store, *args[2:])
    with pytest.raises(InputError, match="--seeds is 2"):
        compare("pre", "post", store, seeds=2)
    for steps in (10, 20):
        (tmp_path / f"{steps}.toml").write_text(RECIPE.format(steps=steps, source=text_folder, width=8))
    with pytest.raises(InputError, match=r"run.steps is 10 in .* give --steps for both"):
        recipes(str(tmp_path / "10.toml"), str(tmp_path / "20.toml"))
    assert recipes(str(tmp_path / "10.toml"), str(tmp_path / "20.toml"), steps=5)[1].run.steps == 5
    assert main(["study", "compare", "pre", "post", "--n-layers", "0"]) == 2
    assert capsys.readouterr().err == "residuum: --n-layers is 0: give at least 1\n"
    (tmp_path / "bad.toml").write_text("[model]\nn_layers = 0")
    assert main(["study", "compare", "quick", str(tmp_path / "bad.toml"), "--n-layers", "2"]) == 2
    assert "bad.toml: model.n_layers is 0: give at least 1" in capsys.readouterr().err  # the file's, not the flag's
    assert main(["study", "compare", "pre"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not store.folder.exists()
