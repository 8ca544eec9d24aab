"""--packed, and RUN as a packed file: the same text from another decoder."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
import torch

from residuum.cli import main
from residuum.packed import pack, save
from residuum.train import RunFolder
from residuum.train.tokenizer import ByteTokenizer


def said(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    status = main([str(arg) for arg in args])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_a_packed_run_writes_the_runs_own_text(answers_run: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("numba", reason="because the extra packed is not installed")
    folder = RunFolder.open(answers_run)
    file = tmp_path / "answers.safetensors"
    save(file, pack(folder.model(), "float"), folder.tokenizer.to_json(), "=")
    asked = ["--prompt", "12+7=", "--max-new-tokens", "20", "--seed", "3"]
    status, out, _ = said(capsys, "generate", answers_run, *asked)
    assert status == 0
    assert said(capsys, "generate", answers_run, "--packed", "--embedding", "float", *asked)[:2] == (0, out)
    notes = said(capsys, "generate", answers_run, "--packed", *asked)[2]
    found = re.search(
        r"packed scores of the prompt differ from the model's own by ([\d.]+)% of their RMS, at most by [\d.e-]+\n",
        notes,
    )
    assert found and 0 < float(found[1]) < 10
    assert said(capsys, "generate", file, "--threads", 1, *asked)[:2] == (0, out)
    assert said(capsys, "generate", file, "--packed", *asked)[:2] == (0, out)


def test_chat_asks_a_packed_run(answers_run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    pytest.importorskip("numba", reason="because the extra packed is not installed")
    folder, file = RunFolder.open(answers_run), tmp_path / "answers.safetensors"
    save(file, pack(folder.model(), "float"), folder.tokenizer.to_json(), folder.recipe.data.answer)
    shown = []
    for run, *flags in ([answers_run], [answers_run, "--packed", "--embedding", "float"], [file]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("12+7\n3*4\n"))
        shown.append(said(capsys, "chat", run, "--max-new-tokens", 9, *flags)[1])
    assert shown[0] == shown[1] == shown[2]
    assert shown[0].count("\n") == 2


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["gone", "--threads", "1"], "--threads goes with --packed"),
        (["gone", "--packed", "--threads", "0"], "--threads is 0: give 1 to "),
        (["gone", "--packed", "--threads", "100000"], "--threads is 100,000: give 1 to "),
        (["gone", "--embedding", "int8"], "--embedding goes with --packed"),
        (["gone.safetensors", "--packed", "--embedding", "int8"], "--embedding goes with --packed"),
        (["gone.safetensors"], "cannot read gone.safetensors"),
        (["gone", "--packed"], "gone is no folder"),
        (["gone", "--max-new-tokens", "9" * 20], "--max-new-tokens is"),
    ],
)
def test_bad_values(args: list[str], error: str, capsys) -> None:
    status, out, err = said(capsys, "generate", *args)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert error in err


@pytest.mark.parametrize("name", ["i2.bin", "packed"])
def test_a_packed_file_may_have_any_name(answers_run: Path, tmp_path: Path, capsys, name) -> None:
    pytest.importorskip("numba", reason="because the extra packed is not installed")
    file = tmp_path / name
    assert said(capsys, "export", answers_run, "--to", "safetensors", "--out", file)[0] == 0
    status, out, _ = said(capsys, "generate", file, "--threads", 1, "--prompt", "1+1=", "--max-new-tokens", 3)
    assert status == 0 and out.startswith("1+1=")


def test_another_file_is_no_packed_model(answers_run: Path, capsys) -> None:
    status, out, err = said(capsys, "generate", answers_run / "recipe.toml")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "recipe.toml is no packed model" in err


def test_scores_that_are_not_finite_are_no_difference(answers_run: Path, capsys, monkeypatch) -> None:
    pytest.importorskip("numba", reason="because the extra packed is not installed")
    model = RunFolder.open(answers_run).model()
    with torch.no_grad():
        model.blocks[0].attn_residual.norm.gain.fill_(3e38)
    monkeypatch.setattr(RunFolder, "model", lambda folder: model)
    status, out, err = said(capsys, "generate", answers_run, "--packed", "--prompt", "1+1=")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "scores are not finite" in err


def test_what_is_not_ternary_is_refused(noise_run: Path, capsys) -> None:
    status, out, err = said(capsys, "generate", noise_run, "--packed")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "model.linear = 'float' cannot be packed" in err


def test_a_tokenizer_that_is_not_the_models_is_named(answers_run: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "answers.safetensors"
    save(file, pack(RunFolder.open(answers_run).model()), ByteTokenizer().to_json())
    status, out, err = said(capsys, "generate", file, "--prompt", "1")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "its tokenizer has 257 tokens, its model 14" in err
