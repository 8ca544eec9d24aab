"""The monitor in other people's trainers."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from residuum.errors import InputError
from residuum.model import ModelConfig, Transformer
from residuum.monitor import read_lines

# What these libraries warn about themselves.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.filterwarnings("error:residuum")]

TOKENS = torch.randint(31, (12, 7), generator=torch.Generator().manual_seed(1))


def test_the_trainer_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="because transformers is not installed")
    pytest.importorskip("accelerate", reason="because accelerate is not installed, which the Trainer needs")
    from residuum.monitor.huggingface import MonitorCallback

    def trained(callbacks: list) -> dict[str, Tensor]:
        transformers.set_seed(0)
        config = transformers.GPT2Config(vocab_size=31, n_positions=12, n_embd=12, n_layer=2, n_head=3)
        model = transformers.GPT2LMHeadModel(config)
        options = transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=5, per_device_train_batch_size=2, use_cpu=True,
            gradient_accumulation_steps=2, save_strategy="no", report_to=[], disable_tqdm=True, logging_steps=100,
        )  # fmt: skip
        data = [{"input_ids": row, "labels": row} for row in TOKENS]
        transformers.Trainer(model, options, train_dataset=data, callbacks=callbacks).train()
        return {name: value.clone() for name, value in model.state_dict().items()}

    path = tmp_path / "monitor.jsonl"
    plain, watched = trained([]), trained([MonitorCallback(every=2, to=path)])
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    lines = read_lines(path)
    assert [line["step"] for line in lines] == [1, 2, 4]
    assert all(len(line["connections"]) == 4 and line["loss"] > 0 for line in lines)
    assert all(0 < c["identity_share"] < 1 for line in lines for c in line["connections"])


def lightning_name() -> str | None:
    return next((n for n in ("lightning.pytorch", "pytorch_lightning") if _is_there(n)), None)


def _is_there(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def test_lightning(tmp_path: Path) -> None:
    name = lightning_name()
    if name is None:
        pytest.skip("because Lightning is not installed")
    pl = importlib.import_module(name)
    from residuum.monitor.lightning import MonitorCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Transformer(ModelConfig(vocab_size=31, context=12, d_model=12, n_layers=2, n_heads=3))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(batch).flatten(0, 1), batch.flatten())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    def trained(callbacks: list) -> dict[str, Tensor]:
        torch.manual_seed(0)
        module = Module()
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=callbacks, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(TOKENS, batch_size=2))
        return {name: value.clone() for name, value in module.state_dict().items()}

    path = tmp_path / "monitor.jsonl"
    plain, watched = trained([]), trained([MonitorCallback(every=2, to=path, module="net")])
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    lines = read_lines(path)
    assert [line["step"] for line in lines] == [1, 2, 4, 6]
    assert all(len(line["connections"]) == 4 and line["loss"] > 0 for line in lines)
    with pytest.raises(InputError, match="module is 'body': Module has no such submodule"):
        trained([MonitorCallback(to=path, module="body")])


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, missing, said in (
        ("huggingface", ("transformers",), r"needs transformers: pip install 'residuum\[hf\]'"),
        ("lightning", ("lightning.pytorch", "pytorch_lightning"), "needs Lightning: pip install lightning"),
    ):
        with monkeypatch.context() as patch:
            for name in missing:
                patch.setitem(sys.modules, name, None)
            patch.delitem(sys.modules, f"residuum.monitor.{module}", raising=False)
            with pytest.raises(ImportError, match=said):
                importlib.import_module(f"residuum.monitor.{module}")


def test_the_lightning_that_is_in_use_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both names can be installed, and a Trainer of one knows no callback of the other."""
    ours, theirs = (types.ModuleType(name) for name in ("lightning.pytorch", "pytorch_lightning"))
    ours.Callback = type("Ours", (), {})  # type: ignore[attr-defined]
    theirs.Callback = type("Theirs", (), {})  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "lightning.pytorch", raising=False)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", theirs)
    monkeypatch.delitem(sys.modules, "residuum.monitor.lightning", raising=False)
    module = importlib.import_module("residuum.monitor.lightning")
    assert issubclass(module.MonitorCallback, theirs.Callback)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", ours)
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    monkeypatch.delitem(sys.modules, "residuum.monitor.lightning")
    module = importlib.import_module("residuum.monitor.lightning")
    assert issubclass(module.MonitorCallback, ours.Callback)
    monkeypatch.delitem(sys.modules, "residuum.monitor.lightning")
