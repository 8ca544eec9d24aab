"""The command as a person types it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from residuum.cli import main

TINY = [
    "--run.steps", "4", "--run.eval-tokens", "200", "--run.sample-tokens", "5", "--data.tokenizer", "byte",
    "--data.held-out", "0.3", "--data.documents", "auto", "--model.context", "16", "--model.d-model", "12",
    "--model.n-layers", "2", "--model.n-heads", "3", "--optim.batch-size", "2",
]  # fmt: skip


def run(*args: object, cwd: Path | None = None, **kwargs) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "residuum", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, **kwargs)


@pytest.fixture(scope="module")
def trained(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    done = run("train", "quick", "--run.dir", path, "--data.source", text_folder, *TINY)
    assert done.returncode == 0, done.stderr
    return path


def fails(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one line that a mistake gets, with exit status 2."""
    try:
        status = main([str(arg) for arg in args])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert error.startswith("residuum: ")
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    return error


def test_help_and_import_leave_torch_alone() -> None:
    program = (
        "import sys, residuum\n"
        "from residuum.cli import main\n"
        "assert main(['--help']) == 0\n"
        "assert 'torch' not in sys.modules and 'tyro' not in sys.modules, 'loaded too early'"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


def test_help_of_train_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "quick", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag in ("--run.checkpoint-every", "--model.residual", "--optim.lr", "--data.source"):
        assert flag in text
    assert "default: 500" in text  # the recipe's own value, not the class's


def test_training_ends_with_a_report(trained: Path) -> None:
    page = (trained / "report.html").read_text()
    assert "What it wrote" in page
    assert "bits per byte after 4 steps" in page
    assert "4 residual connections in 1 stream" in page


def test_plain_lines_where_there_is_no_terminal(text_folder: Path, tmp_path: Path) -> None:
    done = run("train", "quick", "--run.dir", tmp_path / "run", "--data.source", text_folder, *TINY)
    assert "\x1b" not in done.stdout
    assert "step      4/4  loss" in done.stdout
    assert "bits/byte" in done.stdout
    assert f"report: {tmp_path / 'run' / 'report.html'}" in done.stdout
    assert done.stderr == ""


def test_audit_of_a_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(trained), "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    residuals = content["streams"][0]["residuals"]
    assert [r["branch"] for r in residuals] == ["blocks.0.attn", "blocks.0.ff", "blocks.1.attn", "blocks.1.ff"]
    assert content["loss"]["name"] == "next-token cross-entropy on held-out text"
    assert main(["audit", str(trained)]) == 0
    shown = capsys.readouterr().out
    assert "blocks.1.ff" in shown
    assert "pre.py:" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_audit_says_when_the_text_is_another(
    text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, path = tmp_path / "text", tmp_path / "run"
    shutil.copytree(text_folder, text)
    assert main(["train", "quick", "--run.dir", str(path), "--data.source", str(text), *TINY]) == 0
    (text / "new.txt").write_text("words that were not there\n")
    capsys.readouterr()
    assert main(["audit", str(path)]) == 0
    assert "(not the run's own: data.source has changed since)" in " ".join(capsys.readouterr().out.split())


MODELS = """
import torch
from torch import nn

def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel
    shape = dict(vocab_size=40, n_embd=12, n_layer=2, n_head=3, n_positions=32)
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))

def bert():
    from transformers import BertConfig, BertModel
    config = BertConfig(vocab_size=40, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20)
    return BertModel(config), {"input_ids": torch.arange(8)[None]}

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
    def forward(self, x):
        return self.b(self.a(x))

def plain():
    return Plain(), torch.randn(2, 4)

def resnet():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

def no_model():
    return 3

def broken():
    raise RuntimeError("the\\nfile is gone")

def mute():
    return Plain()

def exits():
    raise SystemExit(0)

def ours():
    from residuum import ModelConfig, Transformer
    return Transformer(ModelConfig(vocab_size=9, context=8, d_model=6, n_layers=1, n_heads=2))

class Talks(nn.Linear):
    def forward(self, x):
        print("hello from the model")
        return x + super().forward(x)

def talks():
    return Talks(4, 4), torch.randn(2, 4)

def wrong_input():
    return Plain(), torch.randn(2, 5)
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "their_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "their_models", raising=False)
    return "their_models"


def test_audit_of_models_by_name(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="because the extra hf is not installed")
    for name, text in (("gpt2", "residual"), ("bert", "hidden_states + input_tensor")):
        assert main(["audit", f"{models}:{name}", "--format", "json"]) == 0
        content = json.loads(capsys.readouterr().out)
        (stream,) = content["streams"]
        assert len(stream["residuals"]) == 4
        for residual in stream["residuals"]:
            source = residual["source"]
            line = Path(source["file"]).read_text().splitlines()[source["line"] - 1]
            assert text in line
            assert "+" in line


def test_a_models_own_words_do_not_spoil_the_json(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", f"{models}:talks", "--format", "json"]) == 0
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["streams"][0]["residuals"]) == 1
    assert "hello from the model" in shown.err


def test_our_own_model_by_name(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", f"{models}:ours", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"]["name"] == "next-token cross-entropy"


def test_narrow_terminals(models: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["audit", f"{models}:ours"]) == 0
    shown = capsys.readouterr().out
    assert "blocks.0.attn" in shown
    assert max(map(len, shown.splitlines())) <= 40


def test_findings_decide_the_exit_status(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", f"{models}:plain"]) == 1
    assert "RS101 error: no residual connection" in capsys.readouterr().out
    assert main(["audit", f"{models}:plain", "--fail-on", "never"]) == 0
    assert main(["audit", f"{models}:resnet", "--fail-on", "error"]) == 1


def test_reports_go_where_they_are_told(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["audit", f"{models}:plain", "--format", "html", "--out", "deep/page.html"])
    assert capsys.readouterr().out == "deep/page.html\n"
    assert Path("deep/page.html").read_text().startswith("<!doctype html>")
    assert "is no regular file" in fails(capsys, "audit", f"{models}:plain", "--format", "json", "--out", "deep")
    assert "--out goes with --format md, html, json or sarif" in fails(capsys, "audit", f"{models}:plain", "--out", "x")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere", "'nowhere' names nothing that can be audited: name a run folder, package.module:callable"),
        ("no.such:build", "no module named no"),
        ("their_models:missing", "module their_models has no missing"),
        ("their_models:no_model", "returned int: return a torch.nn.Module"),
        ("their_models:broken", "raised RuntimeError: the file is gone"),
        ("their_models:exits", "raised SystemExit: 0"),
        ("their_models:", "name both sides of the colon"),
        ("", "'' is no target: name a run folder"),
        ("their_models:mute", "no inputs can be made for Plain: return (module, inputs)"),
        ("their_models:wrong_input", "Plain's forward pass raised RuntimeError in a: mat1 and mat2"),
        (".", "is no run folder: it holds no recipe.toml"),
    ],
)
def test_bad_targets(target: str, message: str, models: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in fails(capsys, "audit", target)


def test_generate(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(trained), "--prompt", "the stream", "--max-new-tokens", "30"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert first.startswith("the stream")
    assert main(command) == 0
    assert capsys.readouterr().out == first
    assert "--temperature is -1.0" in fails(capsys, "generate", trained, "--temperature", "-1")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "no verb 'trian': choose train, audit, generate"),
        (["train"], "which recipe?"),
        (["train", "quik"], "no recipe 'quik': choose bitnet, "),
        (["train", "--resume"], "--resume takes the folder of a run"),
        (["train", "--resume", "nowhere"], "nowhere is no folder"),
        (["train", "--resume", "a", "--run.steps", "3"], "--resume takes the folder of a run and nothing else"),
        (
            ["train", "quick", "--run.stepz", "3"],
            "--run.stepz, 3, perhaps you meant --run.steps: see residuum train quick --help",
        ),
        (["train", "quick", "--run.steps", "many"], "Error parsing --run.steps: invalid literal"),
        (["train", "quick", "--run.steps", "0"], "run.steps is 0: give at least 1"),
        (["train", "quick", "--model.d-model", "130"], "model.d_model = 130 is not divisible by model.n_heads = 4"),
        (["train", "quick", "--model.residual", "prenorm"], "model.residual = 'prenorm'"),
        (["train", "quick", "--data.source", "gone.txt"], "data.source = 'gone.txt' does not exist"),
        (["train", "quick", "--run.device", "warp"], "run.device = 'warp' cannot be used"),
        (["audit"], "audit what? residuum audit TARGET, or --diff A B"),
        (["audit", "x", "--format", "yaml"], "invalid choice 'yaml' for argument '--format'"),
        (["generate", "gone"], "gone is no folder"),
        (["generate", "gone", "--temperature", "nan"], "--temperature is nan: give a finite number"),
        (["generate", "gone", "--seed", "99999999999999999999"], "--seed is 99999999999999999999"),
        (["generate", "gone", "--top-k", "0"], "--top-k is 0: give at least 1"),
        (["train", ""], "the recipe's name is empty"),
        (["train", "quick", "--run.device", "meta"], "run.device = 'meta' cannot be used"),
        (["train", "quick", "--run.dir", "/dev/null/x"], "/dev/null"),
    ],
)
def test_mistakes_are_one_line(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *args)
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_a_context_longer_than_the_text(text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [
        "train",
        "quick",
        "--run.dir",
        tmp_path / "run",
        "--data.source",
        text_folder,
        *TINY,
        "--model.context",
        999999,
    ]
    assert "model.context = 999999 is longer than the text" in fails(capsys, *args)


def test_a_taken_folder_is_not_touched(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    assert f"already holds a run: go on with --resume {trained}" in fails(
        capsys, "train", "quick", "--run.dir", trained
    )
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*")} == before
    (tmp_path / "letters.txt").write_text("mine")
    assert "is not empty: choose another --run.dir" in fails(capsys, "train", "quick", "--run.dir", tmp_path)


def test_damaged_checkpoints_are_named(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = trained / "checkpoints" / "step_00000004" / "model.safetensors"
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        for args in (["audit", trained], ["generate", trained], ["train", "--resume", trained]):
            assert f"{file} is damaged (its checksum differs)" in fails(capsys, *args)
        file.unlink()
        assert f"{file} is missing" in fails(capsys, "audit", trained)
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("most_bytes", [600, 20_000, 60_000])
def test_a_disk_that_refuses(most_bytes: int, text_folder: Path, tmp_path: Path) -> None:
    """No file may grow beyond a bound: what a full disk does, for real, at the recipe, a checkpoint or the report."""
    path = tmp_path / "run"
    done = run(
        "train", "quick", "--run.dir", path, "--data.source", text_folder, *TINY,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("residuum: cannot write ")
    assert "make room or" in done.stderr or "raise ulimit -f or" in done.stderr
    assert done.stderr.count("\n") == 1
    left = [p for p in path.rglob("*") if p.is_file()]
    assert not [p for p in left if p.name.startswith(".")]
    assert not (path / "report.html").exists()
    again = run("train", "--resume", path) if (path / "recipe.toml").exists() else None
    assert again is None or again.returncode == 0, again.stderr


def test_a_run_without_its_tokenizer(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder = shutil.copytree(trained, tmp_path / "run")
    (run_folder / "tokenizer.json").unlink()
    assert "tokenizer.json is missing: put it back" in fails(capsys, "audit", run_folder)
