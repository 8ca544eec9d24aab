"""docs/monitor.md, run as it stands there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

import residuum
from residuum.model import ModelConfig, Transformer
from residuum.monitor import read_lines

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "monitor.md").read_text()
LOOP, READING, RERUN, TRAINER, LIGHTNING, TEST = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def loss_of(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    return model.loss(tokens, tokens)


def test_the_loop_and_its_lines(
    tiny: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {
        "model": tiny,
        "data": [torch.randint(31, (2, 7))] * 2,
        "loss_of": loss_of,
        "optimizer": torch.optim.SGD(tiny.parameters(), lr=0.1),
    }
    exec(LOOP, names)
    exec(READING, {})
    assert re.fullmatch(r"1 0\.\d+ \[.*\]\n", capsys.readouterr().out)
    (line,) = read_lines("monitor.jsonl")
    for key in (*line, *line["connections"][0]):
        assert re.search(rf"`{key}(\[\])?`", PAGE), key


def test_a_step_that_is_run_again() -> None:
    config = ModelConfig(vocab_size=31, context=8, d_model=16, n_layers=1, n_heads=2, linear="ternary", norm="rmsnorm")
    model, tokens = Transformer(config), torch.randint(31, (2, 7))
    monitor = residuum.Monitor(model, every=1, to=[].append)
    with monitor:
        model.loss(tokens, tokens).backward()
        exec(RERUN, {"model": model, "tokens": tokens, "monitor": monitor, "loss_of": loss_of})
    assert monitor.last is not None
    for each in monitor.last["ternary"]:
        assert None not in (each["lost"], each["top"], each["cosine"])
        assert all(re.search(rf"`{key}`", PAGE) for key in each)


@pytest.mark.filterwarnings("default")
def test_the_trainers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="because transformers is not installed")
    pytest.importorskip("accelerate", reason="because accelerate is not installed, which the Trainer needs")
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    names = {"Trainer": transformers.Trainer, "model": torch.nn.Linear(2, 2), "arguments": arguments, "dataset": [0]}
    exec(TRAINER, names)
    assert any(type(c).__name__ == "MonitorCallback" for c in names["trainer"].callback_handler.callbacks)
    lightning = importlib.import_module(
        pytest.importorskip("pytorch_lightning", reason="because Lightning is not installed").__name__
    )
    options = {"logger": False, "accelerator": "cpu", "enable_checkpointing": False, "default_root_dir": tmp_path}
    names = {"lightning": lightning, "options": options}
    exec(LIGHTNING, names)
    assert any(type(c).__name__ == "MonitorCallback" for c in names["trainer"].callbacks)


def test_the_fixture() -> None:
    from residuum.audit import audit
    from residuum.pytest_plugin import Audited

    model = Transformer(ModelConfig(vocab_size=31, context=12, d_model=12, n_layers=2, n_heads=3))
    names = {"model": model, "tokens": torch.randint(31, (2, 7))}
    exec(TEST, names)
    asked: list[Transformer] = []

    def residual_audit(model: Transformer, tokens: torch.Tensor) -> Audited:
        asked.append(model)
        return Audited(audit(model, tokens))

    names["test_the_stream_is_sound"](residual_audit)
    assert len(asked) == 2
