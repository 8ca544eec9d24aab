"""A residual connection that somebody else wrote: one step with it before anything is made for it, and its faults in
one line, whenever they show."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from residuum.engine.engine import make_engine
from residuum.errors import InputError, meant
from residuum.model import ModelConfig, Transformer
from residuum.model.residual import Optim, Residual, residual_of
from residuum.model.residual.base import BY_HAND
from residuum.model.residual.own import source_of

# The words of a text matter to no connection: a smaller table of them is as good.
VOCAB = 32

NEAR = 1e-2
"""Relative, of gradients: half precision on the way is no fault."""
SAME = 1e-5
"""Relative, of scores: a place that sees no later one computes the same by the same operations, whatever they round."""


def try_out(config: ModelConfig, engine: str, device: torch.device | str = "cpu", compare: bool = True) -> None:
    """Build the model that `config` describes, train it for a step on noise, and have it read a text and a token.

    In a decoder no place may see a later one, and if they are to `compare` the explicit engine's gradients are those of
    autograd.

    Raises `InputError` if its residual connection is at fault: one line that names it, what it raised or should have
    given, and where. Ours are not tried.
    """
    kind = residual_of(config)
    file = source_of(kind)
    if file is None:
        return
    trial = _Trial(config.residual, kind, file)
    with contextlib.suppress(_NoRoom):  # as it is said where there is none for the model itself
        _step(trial, config, engine, device, compare)


@contextlib.contextmanager
def faults_named(config: ModelConfig) -> Iterator[None]:
    """While open, what the residual connection that `config` names raises is an `InputError` as `try_out`'s are.

    Errors that did not pass through its file, and those of ours, are left as they are.
    """
    kind = residual_of(config)
    file = source_of(kind)
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if file is None or not _lines_of(file, error) or _no_room(error):
            raise
        with _Trial(config.residual, kind, file).of("forward"):
            raise


def _step(trial: _Trial, config: ModelConfig, engine: str, device: torch.device | str, compare: bool) -> None:
    gpus = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(gpus):
        with trial.of("__init__"):
            model = Transformer(dataclasses.replace(config, vocab_size=min(config.vocab_size, VOCAB))).to(device)
        trial.begins_with_numbers(model)
        trial.watch(model)
        tokens = torch.randint(model.config.vocab_size, (2, config.context), device=device)
        trial.asks_of_parameters(model)
        with trial.of("forward"):
            make_engine(engine).loss_and_grads(model, (tokens, tokens))
            model.eval()
            trial.sees_nothing_later(model, tokens)
            with torch.no_grad():
                model(tokens[:, :1])  # as text is continued
            if engine == "explicit" and compare:
                trial.agrees(model, tokens)


class _NoRoom(Exception):
    """Memory is nobody's fault."""


class _Trial:
    """A connection under trial, and the shape of x, which a stream begins and ends with."""

    def __init__(self, name: str, kind: type[Residual], file: Path) -> None:
        self.name, self.kind, self.file = name, kind, file
        self.one_stream = (kind.begin, kind.end) == (Residual.begin, Residual.end)
        self.x: Any = None

    def watch(self, model: Transformer) -> None:
        """Have every method of every connection looked at while it runs."""
        for connection, _ in model.connections():
            for method in (name for names in BY_HAND for name in names):
                setattr(connection, method, self._watched(method, getattr(connection, method)))

    def begins_with_numbers(self, model: Transformer) -> None:
        """No first value is NaN or infinite."""
        for name, parameter in model.named_parameters():
            if not parameter.isfinite().all():
                method = "initialise" if "initialise" in vars(self.kind) else "__init__"
                raise self._said(method, f"leaves {name} with NaN or infinity", "give it numbers to begin with")

    def asks_of_parameters(self, model: Transformer) -> None:
        """`optim` gives an Optim of numbers for parameters that there are."""
        with self.of("optim"):
            asked = self.kind.optim(model)
        if not isinstance(asked, dict) or not all(isinstance(wish, Optim) for wish in asked.values()):
            raise self._said("optim", f"returned {str(asked)[:60]}", "return a dict, an Optim by a parameter's name")
        names = dict(model.named_parameters())
        for name, wish in asked.items():
            if name not in names:
                near = meant(str(name), names)
                raise self._said("optim", f"asks for '{name}', which is no parameter", f"give one{near}")
            if not all(isinstance(factor, (int, float)) and 0 <= factor < math.inf for factor in (wish.lr, wish.eps)):
                raise self._said("optim", f"asks for {wish} of '{name}'", "give finite factors, at least 0")

    def sees_nothing_later(self, model: Transformer, tokens: Tensor) -> None:
        """Another last token changes no earlier place of a decoder."""
        other = tokens.clone()
        other[:, -1] = (other[:, -1] + 1) % model.config.vocab_size
        scores, others = (self._scores(model, read)[:, :-1] for read in (tokens, other))
        if model.config.causal and (scores - others).norm() > SAME * scores.norm():
            raise self._said("forward", "lets a place see later ones", "use each place's own state alone")

    def _scores(self, model: Transformer, tokens: Tensor) -> Tensor:
        """By the same random numbers each time, if it draws any."""
        torch.manual_seed(0)
        with torch.no_grad():
            return model(tokens).float()

    def agrees(self, model: Transformer, tokens: Tensor) -> None:
        """The explicit pair gives what autograd makes of `forward`."""
        found = []
        for engine in ("explicit", "autograd"):
            model.zero_grad()
            make_engine(engine).loss_and_grads(model, (tokens, tokens))
            found.append([torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()])
        off = sum(float((a - b).square().sum()) for a, b in zip(*found, strict=True))
        size = sum(float(b.square().sum()) for b in found[1])
        if not off <= NEAR**2 * size:
            raise self._said(
                "explicit_backward", "gives other gradients than autograd", f"see residuum check {self.name}"
            )

    def _said(self, method: str, what: str, mend: str) -> InputError:
        return InputError(f"'{self.name}': {method} {what} ({self._where(method)}): {mend}")

    @contextlib.contextmanager
    def of(self, method: str) -> Iterator[None]:
        """Whatever is raised is the connection's doing."""
        try:
            yield
        except (InputError, _NoRoom):
            raise
        except Exception as error:
            if _no_room(error):
                raise _NoRoom from error
            where = self._where(method, error)
            if isinstance(error, NotImplementedError) and not str(error) and not _lines_of(self.file, error):
                raise InputError(f"'{self.name}' has no {method} ({where}): write it") from error
            said = ": ".join(filter(None, (type(error).__name__, str(error))))
            raise InputError(f"'{self.name}' raised {said} ({where}): mend it") from error

    def _watched(self, method: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def watched(state: Any, *args: Any) -> Any:
            self.x = _shape(state) if method == "begin" else self.x
            with self.of(method):
                given = run(state, *args)
            pair = method in ("explicit_forward", "explicit_end")
            if pair and not (isinstance(given, tuple) and len(given) == 2):
                raise self._wrong(method, given, "a pair, the result and what its backward needs")
            result = given[0] if pair else given
            outside = method in ("end", "explicit_end", "begin_backward")
            wanted = self.x if outside else _shape(state)
            if (outside or self.one_stream) and _shape(result) != wanted:
                raise self._wrong(method, result, f"a tensor of {wanted}")
            return given

        return watched

    def _wrong(self, method: str, given: Any, wanted: str) -> InputError:
        where = self._where(method)
        return InputError(f"'{self.name}': {method} returned {_shape(given)} ({where}): return {wanted}")

    def _where(self, method: str, error: Exception | None = None) -> str:
        """The last line of the connection's file on the way to the error; else where the method, or the class, is."""
        theirs = _lines_of(self.file, error) if error else []
        if theirs:
            return f"{self._short()}:{theirs[-1].lineno}, in {theirs[-1].name}"
        code = getattr(inspect.unwrap(getattr(self.kind, method)), "__code__", None)
        if code is not None and code.co_filename == str(self.file):
            return f"{self._short()}:{code.co_firstlineno}, {method}"
        return f"{self._short()}:{inspect.getsourcelines(self.kind)[1]}, {method}"

    def _short(self) -> Path:
        return self.file.relative_to(Path.cwd()) if self.file.is_relative_to(Path.cwd()) else self.file


def _lines_of(file: Path, error: Exception) -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]


def _no_room(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def _shape(given: Any) -> str:
    return str(list(given.shape)) if isinstance(given, Tensor) else type(given).__name__
