"""A monitor for the Trainer of transformers."""

from __future__ import annotations

from typing import Any

from residuum.monitor.monitor import Monitor

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError("residuum.monitor.huggingface needs transformers: pip install 'residuum[hf]'") from error


class MonitorCallback(TrainerCallback):
    """`Trainer(..., callbacks=[MonitorCallback(every=100)])`: one line for each measured optimizer step.

    With gradient accumulation the first forward and backward pass of the step is measured, after the Trainer has
    divided its loss by the number of them. Takes what `Monitor` takes; in float16 give
    `scaler=trainer.accelerator.scaler` through `trainer.add_callback`.
    """

    def __init__(self, every: int = 100, to: Any = "monitor.jsonl", scaler: Any = None) -> None:
        self.every, self.to, self.scaler = every, to, scaler
        self.monitor: Monitor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.monitor is not None:  # a training before this one may have ended in the middle of a step
            self.monitor.abandon()
        self.monitor = Monitor(kwargs["model"], self.every, self.to, self.scaler, start=state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.monitor is not None
        self.monitor.abandon()
        self.monitor.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.monitor is not None
        self.monitor.__exit__(None)
