"""`residuum export` as a person types it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from residuum.cli import main
from residuum.export import packed
from residuum.packed import decoder
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
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1  # who may read one may read all
    assert main(["export", str(run), "--to", "hf", "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere", "--to", "hf", "--out", "x"], "nowhere is no folder"),
        (["nowhere", "--to", "onnx", "--out", "x"], "--to"),
        (["nowhere", "--to", "hf", "--out", ""], "--out is empty"),
        (["nowhere", "--to", "gguf", "--out", "x", "--type", "q4_0"], "--type"),
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
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "nowhere")
    capsys.readouterr()
    assert main(["export", str(run), "--to", "safetensors", "--out", str(link)]) == 2
    assert "is there already: choose another --out" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
    assert main(["export", str(run), "--to", "safetensors", "--out", str(out)]) == 0
    found, tokenizer, answer = load(out)
    assert answer is None
    assert found.config == RunFolder.open(run).recipe.model
    assert tokenizer == RunFolder.open(run).tokenizer.to_json()


@pytest.mark.parametrize(("flags", "kept"), [([], "int8"), (["int8"], "int8"), (["float"], "float")])
def test_an_export_says_what_it_rounds(answers_run: Path, tmp_path: Path, capsys: Any, flags: Any, kept: str) -> None:
    pytest.importorskip("numba", reason="because the extra packed is not installed")
    out = tmp_path / "weights.safetensors"
    chosen = ["--embedding", *flags] if flags else []
    assert main(["export", str(answers_run), "--to", "safetensors", "--out", str(out), *chosen]) == 0
    said = capsys.readouterr().out
    assert load(out).packed.embedding == kept
    found = re.search(
        rf"embedding and head as {kept}; its scores differ from the model.s own by ([\d.]+)% of their RMS, at most by",
        said,
    )
    assert found and (float(found[1]) > 0.1) == (kept == "int8")
    assert re.search(r"over \d+ tokens that the run wrote", said)


def test_a_difference_that_was_not_measured_is_said(
    answers_run: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name="numba")

    monkeypatch.setattr(decoder.importlib, "import_module", absent)  # the module's own, by which export.packed is found
    out = tmp_path / "weights.safetensors"
    said = packed.export(RunFolder.open(answers_run), out)
    assert "scores were not compared with the run's, because a packed model takes the extra packed" in said
    assert load(out).packed.embedding == "int8"


def test_an_embedding_is_for_safetensors(answers_run: Path, tmp_path: Path, capsys: Any) -> None:
    command = ["export", str(answers_run), "--out", str(tmp_path / "out"), "--embedding"]
    for to in ("hf", "gguf"):
        assert main([*command, "float", "--to", to]) == 2
        assert "--embedding float goes with --to safetensors: leave it away" in capsys.readouterr().err
    assert main([*command, "int4", "--to", "safetensors"]) == 2
    assert "--embedding" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_type_is_for_gguf(tmp_path: Path, text_folder: Path, capsys: Any) -> None:
    run, out = tmp_path / "run", tmp_path / "model.gguf"
    train = ["train", "quick", "--run.dir", str(run), "--data.source", str(text_folder), *TINY, "--model.n-heads", "2"]
    llama = ["--model.norm", "rmsnorm", "--model.positions", "rotary", "--model.activation", "swiglu"]
    assert main([*train, *llama]) in (0, 1)
    command = ["export", str(run), "--out", str(out), "--type"]
    assert main([*command, "f16", "--to", "hf"]) == 2
    assert "--type f16 goes with --to gguf: leave it away" in capsys.readouterr().err
    assert main([*command, "tq1_0", "--to", "gguf"]) == 2
    assert "model.linear = 'float' is not stored as TQ1_0 in llama.cpp: choose f16" in capsys.readouterr().err
    assert not out.exists()
    pytest.importorskip("gguf", reason="because the extra gguf is not installed")
    assert main([*command, "f16", "--to", "gguf"]) == 0
    assert "F16, architecture llama" in capsys.readouterr().out and out.exists()
