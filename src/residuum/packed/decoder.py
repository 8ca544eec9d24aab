"""A packed model that reads tokens: a thread for each core runs the compiled pass."""

from __future__ import annotations

import importlib
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residuum.cores import cores
from residuum.errors import InputError
from residuum.model.positions import RotaryPositions
from residuum.packed.weights import Packed

Jobs = SimpleQueue[Callable[[], None] | None]

PIECE = 128
"""Tokens that one pass reads at most: enough to share a look at the weights, few enough to need little memory."""


class PackedDecoder:
    """Scores of the next token, after those read so far. Needs the extra `packed`.

    `threads`: as many as there are cores for this process, where not given. What is computed does not depend on it, nor
    on how the tokens are divided among calls, to the last bit. One decoder reads one sequence, in one thread at a time;
    after a fork the child's goes on where the parent's was. Raises `InputError` for more threads than can be started.
    """

    def __init__(self, packed: Packed, threads: int | None = None) -> None:
        threads = cores() if threads is None else threads
        if threads < 1:
            raise ValueError(f"{threads} threads cannot read: give at least 1")
        self._kernels = _kernels()
        self.context, self.length = packed.config.context, 0
        self._vocab_size, self._threads = packed.config.vocab_size, threads
        # Not a pool of Python's: an interrupt while that one hands out work can leave its locks and counts wrong.
        self._others: list[Jobs] = []
        weakref.finalize(self, _end, self._others)
        self._start()
        self._weights = _weights(packed, self._kernels)
        self._space = _space(packed, threads, self._kernels)
        functions = {"swiglu": "silu", "squared_reglu": "squared_relu"}
        activation = packed.config.activation
        self._settings = (
            packed.config.norm_eps,
            packed.config.norm == "layernorm",
            getattr(self._kernels, functions.get(activation, activation).upper()),
        )
        alone = (np.zeros(self._kernels.LINE, np.int64), np.zeros(1, np.int64), 0, *self._settings, 0, 1)
        self._kernels.forward(self._weights, self._space, *alone)  # compiles, before threads wait for each other

    def read(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Scores [vocab] of the token after these, which follow those read before.

        Raises `ValueError` for no tokens, for one outside the vocabulary, or for more than the context has room for;
        `RuntimeError` while another thread reads. After an exception nothing of these tokens counts as read.
        """
        new = np.array(tokens, np.int64)
        if not new.size:
            raise ValueError("there is no token to read: give at least one")
        if new.min() < 0 or new.max() >= self._vocab_size:
            raise ValueError(f"a token is outside the vocabulary of {self._vocab_size}")
        self._take_turn()
        before = self.length
        try:
            try:
                if before + new.size > self.context:
                    raise ValueError(f"{before + new.size} tokens are more than the model's context of {self.context}")
                for start in range(0, new.size, PIECE):
                    self._pass(new[start : start + PIECE], before + start)
                self.length = before + new.size
                return self._space.scores.copy()
            finally:
                self._turn.release()
        except BaseException:  # also an interrupt of the release
            self.length = before
            raise

    def forget(self) -> None:
        """Start afresh: no token has been read. Raises `RuntimeError` while another thread reads."""
        self._take_turn()
        self.length = 0
        self._turn.release()

    def _start(self) -> None:
        """Threads for this process: a fork leaves them behind, and with them one that was to give back its turn."""
        _end(self._others)
        self._others[:] = []
        try:
            for _ in range(self._threads - 1):
                jobs: Jobs = SimpleQueue()
                self._others.append(jobs)
                threading.Thread(target=_work, args=(jobs,), name="residuum-packed", daemon=True).start()
        except RuntimeError as error:
            _end(self._others)
            raise InputError(f"threads is {self._threads}, more than the system starts ({error}): give fewer") from None
        # Its owner can take it again: so an interrupt before it is given back does not lock its thread out.
        self._turn = threading.RLock()
        self._process = os.getpid()

    def _take_turn(self) -> None:
        if self._process != os.getpid():
            self._start()
        if not self._turn.acquire(blocking=False):
            raise RuntimeError("another thread reads with this decoder: give each thread its own")

    def _pass(self, tokens: NDArray[np.int64], start: int) -> None:
        """One pass on all threads. If one cannot take part the others leave, and the next pass waits for the last."""
        rounds, failed = np.zeros(self._kernels.LINE * self._threads, np.int64), list[BaseException]()
        state = (self._weights, self._space, rounds, tokens, start, *self._settings)

        def forward(thread: int) -> None:
            try:
                self._kernels.forward(*state, thread, self._threads)
            except BaseException as error:
                failed.append(error)
                rounds[:] = self._kernels.LEFT

        try:
            for thread, jobs in enumerate(self._others, start=1):
                jobs.put(partial(forward, thread))
            forward(0)
        except BaseException:
            rounds[:] = self._kernels.LEFT
            raise
        if failed:
            raise failed[0]


def _work(jobs: Jobs) -> None:
    """A thread's whole life. It sleeps while there is nothing to do."""
    while (job := jobs.get()) is not None:
        job()
        del job  # which knows the decoder, and would keep it


def _end(others: list[Jobs]) -> None:
    for jobs in others:
        jobs.put(None)


def _kernels() -> Any:
    try:
        return importlib.import_module("residuum.packed.kernels")
    except ModuleNotFoundError as error:
        if error.name not in ("numba", "llvmlite"):
            raise
        raise InputError("a packed model takes the extra packed: pip install residuum[packed]") from None


def _weights(packed: Packed, kernels: Any) -> Any:
    config = packed.config
    arrays = {name: np.require(array, requirements=("C", "A", "W")) for name, array in packed.arrays.items()}
    if config.head == "tied":
        arrays |= {"head": arrays["embedding"], "head_step": arrays["embedding_step"]}
    if config.positions == "rotary":
        rotary = RotaryPositions(config.context, config.d_head, config.rotary_base)
        arrays |= {"cos": rotary.cos.numpy(), "sin": rotary.sin.numpy()}
    else:
        arrays |= {name: np.zeros((config.context, 0), np.float32) for name in ("cos", "sin")}
    return kernels.Weights(**arrays)


def _space(packed: Packed, threads: int, kernels: Any) -> Any:
    """Room for the context's keys and values, and for one pass."""
    config, piece = packed.config, min(PIECE, packed.config.context)
    width, kv, inner = (4 * packed.arrays[name].shape[1] for name in ("q", "k", "up"))
    cache = (config.n_layers, config.kv_heads, config.context, config.d_head)
    shapes: dict[str, tuple[type, tuple[int, ...]]] = {
        "keys": (np.float32, cache),
        "values": (np.float32, cache),
        "stream": (np.float32, (piece, width)),
        "q": (np.float32, (piece, width)),
        "k": (np.float32, (piece, kv)),
        "v": (np.float32, (piece, kv)),
        "mixed": (np.float32, (piece, config.d_model)),
        "hidden": (np.float32, (piece, inner)),
        "up": (np.float32, (piece, inner)),
        "scores": (np.float32, (config.vocab_size,)),
        "x": (np.int8, (threads, piece, packed.arrays["q"].shape[2])),
        "wide": (np.int8, (threads, piece, packed.arrays["down"].shape[2])),
        "step": (np.float32, (threads, piece)),
        "total": (np.int32, (threads, piece)),
        "normal": (np.float32, (threads, max(width, inner))),
        "weights": (np.float32, (threads, config.n_heads // config.kv_heads, config.context)),
    }
    return kernels.Space(**{name: np.zeros(shape, kind) for name, (kind, shape) in shapes.items()})
