"""`residuum export` as a person types it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from residuum.cli import main
from residuum.packed.file import load
from residuum.train import RunFolder

TINY = [
    "--run.steps", "1", "--run.eval-tokens", "200", "--run.sample-tokens", "0", "--data.tokenizer", "char",
    "--model.context", "16", "--model.d-model", "12", "--model.n-layers", "1", "--model.n-heads", "3",
    "--optim.batch-size", "2",
]  # fmt: skip


def test_a_run_becomes_a_folder_once(tmp_path: Path, text_folder: Path, capsys: Any) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["train", "quick", "--run.dir", str(run), "--data.source", str(text_folder), *TINY]) in (0, 1)
    capsys.readouterr()
    assert main(["export", str(run), "--to", "hf", "--out", str(out)]) == 0
    assert "GPT2LMHeadModel" in capsys.readouterr().out
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in out.iterdir()} == names
    assert main(["export", str(run), "--to", "hf", "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere", "--to", "hf", "--out", "x"], "nowhere is no folder"),
        (["nowhere", "--to", "onnx", "--out", "x"], "--to"),
        (["nowhere", "--to", "hf", "--out", ""], "--out is empty"),
    ],
)
def test_mistakes_are_one_line(capsys: Any, args: list[str], said: str) -> None:
    assert main(["export", *args]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_ternary_weights_become_one_file(tmp_path: Path, text_folder: Path, capsys: Any) -> None:
    run, out = tmp_path / "run", tmp_path / "weights.safetensors"
    command = ["train", "quick", "--run.dir", str(run), "--data.source", str(text_folder), *TINY]
    assert main([*command, "--model.linear", "ternary"]) in (0, 1)
    assert main(["export", str(run), "--to", "safetensors", "--out", str(out)]) == 0
    packed, tokenizer = load(out)
    assert packed.config == RunFolder.open(run).recipe.model
    assert tokenizer == RunFolder.open(run).tokenizer.to_json()
