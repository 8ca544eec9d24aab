"""A run that is killed, at any point, and goes on ends at the same bits as one that never stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """
[run]
steps = 9
log_every = 1
eval_every = 3
eval_tokens = 200
sample_tokens = 8
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
[optim]
batch_size = 3
accumulate = 2
lr = 1e-2
warmup = 2
"""

# Kill the process from inside at the n-th time it makes something durable: around every flush and every rename.
SUICIDE = """
import os, signal, sys
left, place = int(sys.argv[1]), sys.argv[2]
real = os.fsync
def fsync(file):
    global left
    left -= 1
    if left == 0 and place == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    real(file)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
from residuum.cli import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def recipe(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE.format(source=text_folder))
    return path


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "residuum", *map(str, args)]


def run(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def unbroken(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unbroken") / "run"
    done = run("train", recipe, "--run.dir", path)
    assert done.returncode == 0, done.stderr
    return path


def outcome(path: Path) -> dict[str, object]:
    """What must not depend on interruptions: last weights and moments, samples, and the metrics but for the clock."""
    last = path / "checkpoints" / "step_00000009"
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("tokens_per_second", None)
    return {
        "model": (last / "model.safetensors").read_bytes(),
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
        "samples": (path / "samples.txt").read_text(),
        "metrics": lines,
        "checkpoints": sorted(p.name for p in (path / "checkpoints").iterdir()),
        "files": sorted(p.name for p in path.iterdir()),
    }


def test_a_run_leaves_the_documented_files(unbroken: Path) -> None:
    assert outcome(unbroken)["files"] == [
        "checkpoints", "metrics.jsonl", "recipe.toml", "report.html", "samples.txt", "tokenizer.json",
    ]  # fmt: skip
    assert outcome(unbroken)["checkpoints"] == ["step_00000008", "step_00000009"]
    assert [line["step"] for line in outcome(unbroken)["metrics"]] == list(range(10))


# 1–2: the tokenizer, 3–4: the recipe, then for each checkpoint two logs, three files, its folder and its parent.
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("flush", [1, 3, 4, 5, 7, 9, 10, 11, 12, 17, 18, 25])
def test_killed_at_a_flush(flush: int, place: str, recipe: Path, unbroken: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    args = ["train", str(recipe), "--run.dir", str(path)]
    killed = subprocess.run([sys.executable, "-c", SUICIDE, str(flush), place, *args], capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    # Before the recipe is written there is no run yet, and the same command starts it.
    again = run("train", "--resume", path) if (path / "recipe.toml").exists() else run(*args)
    assert again.returncode == 0, again.stderr
    assert outcome(path) == outcome(unbroken)


def test_killed_twice_from_outside(recipe: Path, unbroken: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    waiting = {0: "metrics.jsonl", 1: "checkpoints/step_00000004"}
    for attempt, sign in waiting.items():
        args = ("--resume", path) if attempt else (recipe, "--run.dir", path)
        process = subprocess.Popen(command("train", *args), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (path / sign).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert (path / "recipe.toml").exists()
    again = run("train", "--resume", path)
    assert again.returncode == 0, again.stderr
    assert outcome(path) == outcome(unbroken)


def test_resuming_a_finished_run_changes_nothing(unbroken: Path) -> None:
    before = outcome(unbroken)
    assert run("train", "--resume", unbroken).returncode == 0
    assert outcome(unbroken) == before


def test_another_seed_is_another_run(recipe: Path, unbroken: Path, tmp_path: Path) -> None:
    assert run("train", recipe, "--run.dir", tmp_path / "run", "--run.seed", "1").returncode == 0
    assert outcome(tmp_path / "run")["model"] != outcome(unbroken)["model"]


def test_changed_text_is_refused(recipe: Path, text_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "text"
    copy.mkdir()
    for file in text_folder.iterdir():
        (copy / file.name).write_text(file.read_text())
    path = tmp_path / "run"
    assert run("train", recipe, "--run.dir", path, "--data.source", copy, "--run.steps", "2").returncode == 0
    (copy / "00.txt").write_text("other words\n")
    again = run("train", "--resume", path)
    assert again.returncode == 2
    assert again.stderr.startswith("residuum: the text of data.source is not what")
    assert again.stderr.count("\n") == 1


def test_a_changed_recipe_or_tokenizer_is_refused(unbroken: Path, recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(unbroken, path)
    for name in ("recipe.toml", "tokenizer.json"):
        before = (path / name).read_text()
        (path / name).write_text(before.replace("n_heads = 3", "n_heads = 2") + " ")
        again = run("train", "--resume", path)
        assert again.returncode == 2
        assert f"{path / name} is not the one that step_00000009 was trained with" in again.stderr
        (path / name).write_text(before)
    assert run("train", "--resume", path).returncode == 0


def test_lost_logs_are_said_and_garbled_ones_refused(unbroken: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(unbroken, path)
    (path / "metrics.jsonl").unlink()
    again = run("train", "--resume", path)
    assert again.returncode == 0
    assert f"{path / 'metrics.jsonl'} has lost lines" in again.stdout
    (path / "metrics.jsonl").write_bytes(b"\xff garbage }\n")
    again = run("train", "--resume", path)
    assert again.returncode == 2
    assert (
        again.stderr == f"residuum: {path / 'metrics.jsonl'} is damaged: delete it; the run goes on without its past\n"
    )


def test_a_run_is_repeated_from_its_own_recipe(unbroken: Path, tmp_path: Path) -> None:
    assert run("train", unbroken / "recipe.toml", "--run.dir", tmp_path / "run").returncode == 0
    assert outcome(tmp_path / "run")["model"] == outcome(unbroken)["model"]
    assert (tmp_path / "run" / "recipe.toml").read_bytes() == (unbroken / "recipe.toml").read_bytes()


def test_two_processes_do_not_share_a_folder(recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = subprocess.Popen(
        command("train", recipe, "--run.dir", path, "--run.steps", "100000"), stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not (path / "checkpoints" / "step_00000002").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        second = run("train", "--resume", path)
        assert second.returncode == 2
        assert second.stderr.startswith(f"residuum: {path} is being trained by another process")
    finally:
        first.kill()
        first.wait()


def test_divergence_stops_before_anything_unsound_is_saved(recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    done = run("train", recipe, "--run.dir", path, "--optim.lr", "1e38", "--optim.warmup", "0")
    assert done.returncode == 2
    assert done.stderr.startswith("residuum: training diverged at step ")
    assert "--optim.lr 1e+37" in done.stderr
    assert not list((path / "checkpoints").glob("step_*"))
    assert "NaN" not in (path / "metrics.jsonl").read_text()


def test_interrupted_kindly(recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = subprocess.Popen(
        command("train", recipe, "--run.dir", path, "--run.steps", "100000"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (path / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"stopped; residuum train --resume {path} goes on" in out
    assert "Traceback" not in error
