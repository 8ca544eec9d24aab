"""The explicit engine against autograd, eager and compiled: time and memory of one loss with all its gradients.

Bounds. Time: at most 1.0 × the better of both at every size, at most 0.6 × at 4k parameters. Peak memory above weights
and gradients against eager autograd: keeping everything at most 0.6 × at 11M and 0.4 × at 124M with 50,257 tokens;
keeping block inputs at most 0.2 × at 1.35 × the time. On a CUDA device the 124M row runs in bfloat16, with its times.

usage: python benchmarks/engines.py [4k 0.8M 11M 124M]   # the sizes named are measured anew, the others kept
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import harness
from residuum.engine.explicit import Explicit
from residuum.model import ModelConfig, Transformer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Size:
    model: ModelConfig
    batch: int
    rounds: int
    repeat: int
    """Passes timed as one, where a single one is too short."""
    compiled: bool = True
    """Whether to compare with compiled autograd too: not at 124M on a CPU, where memory is the question."""


SIZES = {
    # The 200-line scalar GPT's shape; GPTs of nanoGPT's two smallest recipes; GPT-2 small.
    "4k": Size(
        ModelConfig(
            vocab_size=27,
            context=16,
            d_model=16,
            n_layers=1,
            n_heads=4,
            norm="rmsnorm",
            activation="squared_relu",
            head="untied",
        ),
        batch=1,
        rounds=40,
        repeat=50,
    ),
    "0.8M": Size(ModelConfig(vocab_size=65, context=64, d_model=128, n_layers=4, n_heads=4), 12, 40, 5),
    "11M": Size(ModelConfig(vocab_size=1024, context=256, d_model=384, n_layers=6, n_heads=6), 4, 20, 1),
    "124M": Size(
        ModelConfig(vocab_size=50257, context=1024, d_model=768, n_layers=12, n_heads=12, bias=True),
        batch=1 if DEVICE == "cpu" else 8,
        rounds=3 if DEVICE == "cpu" else 20,
        repeat=1,
        compiled=DEVICE == "cuda",
    ),
}


def main(names: list[str]) -> None:
    kept = "engines" if DEVICE == "cpu" else "engines-cuda"
    before = json.loads((harness.RESULTS / f"{kept}.json").read_text()) if names else {}
    figures = {**before, "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"}
    for name in names or SIZES:
        figures[name] = measure(SIZES[name], small=name == "4k")
        print(name, figures[name], flush=True)
    harness.save(kept, figures)


def measure(size: Size, small: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Transformer(size.model).to(DEVICE)
    shape = (size.batch, size.model.context)
    tokens = torch.randint(size.model.vocab_size, shape, device=DEVICE)
    parameters = list(model.parameters())

    def anew(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(size.repeat):
                for parameter in parameters:
                    parameter.grad = None
                with torch.autocast("cuda", torch.bfloat16, enabled=DEVICE == "cuda"):
                    loss()
            if DEVICE == "cuda":
                torch.cuda.synchronize()

        return run

    def explicit(**options: Any) -> Callable[[], Tensor]:
        engine = Explicit(**options)
        return lambda: engine.loss_and_grads(model, (tokens, tokens))

    def backward(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            value = loss(tokens, tokens)
            value.backward()
            return value

        return run

    eager, compiled = backward(model.loss), backward(torch.compile(model.loss, dynamic=False))
    ours = {"explicit": explicit(), "explicit, block-inputs": explicit(keep="block-inputs")}
    if small:
        ours["explicit, compiled"] = explicit(compiled=True)
    rows: dict[str, Any] = {"parameters": sum(p.numel() for p in parameters), "tokens": tokens.numel()}
    for name, loss in ours.items():
        rows[name] = {"time_against_eager": harness.ratio(anew(loss), anew(eager), size.rounds)}
        if size.compiled:
            rows[name]["time_against_compiled"] = harness.ratio(anew(loss), anew(compiled), size.rounds)
        if name != "explicit, compiled":
            rows[name]["memory_against_eager"] = peak_bytes(loss, parameters) / peak_bytes(eager, parameters)
    return rows


def peak_bytes(run: Callable[[], Any], parameters: list[Tensor]) -> int:
    """The most that is allocated at a time beyond the weights and their gradients, which are there before."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    run()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    allocated = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return peak


if __name__ == "__main__":
    main(sys.argv[1:])
