"""Watch the residual stream of a model while somebody else trains it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from residuum.audit import judge
from residuum.audit.finding import Evidence, source_of
from residuum.errors import InputError
from residuum.files import refusal
from residuum.monitor.destination import destination
from residuum.monitor.flips import Flips
from residuum.monitor.line import FIELDS, line_of
from residuum.stream import RoundedMap, TraceError
from residuum.stream.estimator import estimator_cosines
from residuum.stream.listen import Listener
from residuum.stream.trace import unwrapped


class Monitor:
    """Measure every `every`-th training step, and the first: gradient shares, stream, and the audit's findings; of
    ternary maps also the levels of their weights, how many flip, and what rounding leaves of what they read.

        monitor = residuum.Monitor(model, every=100, to="monitor.jsonl")
        for x, y in data:
            with monitor:
                loss = model.loss(x, y)
                loss.backward()
            optimizer.step()

    A step is one block, whatever runs in it; of several forward passes (gradient accumulation) the first is measured,
    with the first backward pass that reaches each connection and parameter. The other steps cost a comparison. Weights,
    gradients, buffers and random numbers are exactly those of a run without a monitor, but that a compiled model runs
    eagerly in a measured step.

    `to` is a path (JSON lines, appended), a SummaryWriter, a W&B run, or a function of one dictionary. `scaler` is the
    GradScaler, if there is one: gradients are divided by its scale. `start` counts the steps done before, where a run
    goes on. In distributed training make a monitor on every process; the first alone measures, its own batch.
    Raises `InputError` for what cannot be used, `TraceError` for a model that cannot be looked at.
    """

    def __init__(
        self, model: nn.Module, every: int = 100, to: Any = "monitor.jsonl", scaler: Any = None, start: int = 0
    ) -> None:
        for name, value, least in (("every", every, 1), ("start", start, 0)):
            if type(value) is not int or value < least:
                raise InputError(f"{name} is {value!r}: give a whole number of steps, at least {least}")
        if scaler is not None and not hasattr(scaler, "get_scale"):
            raise InputError(f"scaler is {scaler!r:.60}: give the torch.amp.GradScaler that scales the loss")
        if isinstance(model, nn.DataParallel):
            raise InputError("DataParallel runs copies of the model in threads: use DistributedDataParallel")
        self.every, self.step = every, start
        self.last: dict[str, Any] | None = None
        self._model, self._scaler = unwrapped(model), scaler
        self._write = destination(to)
        self._inside = False
        self._listener: Listener | None = None
        self._stance: Any = None
        self._noted: dict[str, float] = {}
        self._loss: Callable[[], torch.Tensor] | None = None
        self._said: set[str] = set()
        self._flips = Flips()

    def __enter__(self) -> Monitor:
        if self._inside:
            raise InputError("the monitor is inside a step already: leave its block before the next one begins")
        self._inside = True
        self.step += 1
        if self.step % self.every == 0 or self.step == 1:
            self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        try:
            if self._listener is not None and kind is None:
                self._measure(self._listener)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Leave the step, if one is under way, and measure nothing; for loops that cannot use a block."""
        if self._listener is not None:
            self._listener.close()
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
        self._inside, self._listener, self._stance, self._noted, self._loss = False, None, None, {}, None

    def note(self, **values: Any) -> None:
        """Put numbers, such as loss=loss, into this step's line; free where the step is not measured."""
        for name, value in values.items() if self._listener is not None else ():
            if name in FIELDS:
                raise InputError(f"note: the line has a {name} of its own: choose another name")
            try:
                self._noted[name] = float(value.detach() if isinstance(value, torch.Tensor) else value)
            except (TypeError, ValueError, RuntimeError):
                raise InputError(f"note: {name} is {value!r:.60}: give one number") from None

    def rerun(self, loss: Callable[[], torch.Tensor]) -> None:
        """Give this step's loss as a function that runs the model: of ternary maps the estimator's cosine is measured.

            monitor.rerun(lambda: loss_of(model, x, y))

        cos(dL/dW through the straight-through estimator, dL/dW with nothing rounded), at the same weights and the same
        batch. `loss` is called where the step is measured and has ternary maps, twice, after the block; both times
        from one random state, and differentiated past `.grad`. Free where the step is not measured.
        """
        if not callable(loss):
            raise InputError(f"rerun: loss is {loss!r:.60}: give a function of nothing that runs the model")
        if self._listener is not None:
            self._loss = loss

    def _begin(self) -> None:
        if "torch._dynamo" in sys.modules:  # or nothing can have been compiled
            self._stance = torch.compiler.set_stance("force_eager")  # on every process alike
            self._stance.__enter__()
        if _processes() == 1 or torch.distributed.get_rank() == 0:
            # Now, for the scaler changes its scale after the step.
            self._scale = float(self._scaler.get_scale()) if self._scaler is not None else 1.0
            self._listener = Listener(self._model)

    def _measure(self, listener: Listener) -> None:
        name = type(self._model).__name__
        if not listener.called:
            return self._leave_out(f"{name} was not called with gradients: give Monitor the module that the loop calls")
        try:
            line = self._line(listener, name)
        except Exception as error:  # our own fault must not end somebody's training
            return self._leave_out(f"measuring it raised {type(error).__name__}: {error}")
        if line is None:
            return self._leave_out(
                f"no gradient came back through {name}: call backward() inside the block, on a loss of its output"
            )
        self.last = line
        try:
            self._write(line)
        except OSError as error:  # nor may a full disk
            self._leave_out(f"cannot write: {refusal(error)}")
        except Exception as error:  # nor somebody's own destination
            self._leave_out(f"writing to `to` raised {type(error).__name__}: {error}")
        return None

    def _line(self, listener: Listener, name: str) -> dict[str, Any] | None:
        """What was measured in this step; None if no gradient came back."""
        flow = listener.read(self._scale, self._noted.get("loss"))
        if flow is None:
            return None
        audit = judge(Evidence(flow.graph, flow, model_source=source_of(self._model)), name)
        own = {} if listener.own_loss is None else {"loss": flow.loss}
        flips, cosines = self._flips.since_last(flow.ternary), self._cosines(listener, flow.ternary)
        return line_of(self.step, audit, {**own, **self._noted}, flips, cosines)

    def _cosines(self, listener: Listener, maps: list[RoundedMap]) -> list[float | None]:
        """Of each ternary map the estimator's, where the loss was given to be run again."""
        if self._loss is not None and maps:
            try:
                if _processes() > 1:
                    raise InputError("one process alone measures, and the others would not run with it")
                return estimator_cosines(self._model, self._loss, maps, listener.roundings())
            except Exception as error:  # a fault of this must not take the rest of the line with it
                own = isinstance(error, (InputError, TraceError))
                reason = f"{error}" if own else f"rerun's loss raised {type(error).__name__}: {error}"
                self._say("rerun", f"the estimator's cosine is left out at step {self.step}, because {reason}", level=6)
        return [None] * len(maps)

    def _leave_out(self, reason: str) -> None:
        kind = reason.partition(":")[0]  # the rest may name the step
        self._say(kind, f"step {self.step} is left out, because {reason}")

    def _say(self, kind: str, message: str, level: int = 5) -> None:
        """Once of each kind, at the user's block: so many calls above the warning."""
        if kind not in self._said:
            self._said.add(kind)
            warnings.warn(f"residuum.Monitor: {message}", stacklevel=level)


def _processes() -> int:
    """How many train this model."""
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if joined else 1
