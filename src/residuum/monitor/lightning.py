"""A monitor for the Trainer of Lightning, under either of its names."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from residuum.errors import InputError
from residuum.monitor.monitor import Monitor


def _callback() -> type:
    """The base class of the Lightning that is in use: that which is imported already, else that which is installed."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            return import_module(name).Callback
        except ImportError:
            continue
    raise ImportError("residuum.monitor.lightning needs Lightning: pip install lightning")


class MonitorCallback(_callback()):  # type: ignore[misc]
    """`Trainer(callbacks=[MonitorCallback(every=100)])`: one line for each measured batch.

    `module` is the path of the submodule that `training_step` calls (`"net"` for `self.net(x)`); empty if it calls
    `self(x)`. The rest is what `Monitor` takes. A step is a batch; the loss and its scale are Lightning's own.
    """

    def __init__(self, every: int = 100, to: Any = "monitor.jsonl", module: str = "") -> None:
        super().__init__()
        self.every, self.to, self.module = every, to, module
        self.monitor: Monitor | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        try:
            model = pl_module.get_submodule(self.module)
        except AttributeError:
            raise InputError(f"module is '{self.module}': {type(pl_module).__name__} has no such submodule") from None
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.monitor = Monitor(model, self.every, self.to, scaler, start=trainer.fit_loop.total_batch_idx + 1)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        assert self.monitor is not None
        self.monitor.abandon()
        self.monitor.__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.monitor is not None
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            self.monitor.note(loss=loss)
        self.monitor.__exit__(None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self.monitor is not None:
            self.monitor.abandon()
