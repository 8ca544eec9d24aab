"""Training throughput of every residual connection against Pre-LN of the same model, by both engines.

A step is forward, loss, backward and AdamW, in a process that keeps the memory it frees, as `residuum train` does.
Bounds: at least 0.95 × for one stream, 0.85 × for four streams (hyper-connections, mhc), 0.8 × for attention
residuals, on this CPU; 0.85 × for all on a CUDA device.

usage: python benchmarks/residuals.py [NAME ...]   # the connections named are measured anew, the others kept
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch

import harness
from residuum.model import ModelConfig, Transformer
from residuum.model.residual import REGISTRY
from residuum.train.memory import keep_freed_memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = {"vocab_size": 1024, "context": 256, "d_model": 384, "n_layers": 6, "n_heads": 6}
BATCH, ROUNDS = 4, 15
BOUNDS = {"hyper-connections": 0.85, "mhc": 0.85, "attention-residuals": 0.8}


def main(names: list[str]) -> None:
    kept = "residuals" if DEVICE == "cpu" else "residuals-cuda"
    file = harness.RESULTS / f"{kept}.json"
    rows = json.loads(file.read_text())["connections"] if names else {}
    for name in names or sorted(REGISTRY.keys() - {"pre"}):
        bound = BOUNDS.get(name, 0.95) if DEVICE == "cpu" else 0.85
        rows[name] = {"commit": harness.commit(), "bound": bound, "parameters": parameters(name)}
        for engine in ("autograd", "explicit"):
            timed = harness.ratio(step(name, engine), step("pre", engine), ROUNDS)
            low, high = 1 / timed["quartile_high"], 1 / timed["quartile_low"]
            rows[name][engine] = {"throughput": 1 / timed["ratio"], "quartile_low": low, "quartile_high": high}
        print(name, rows[name], flush=True)
    shape = {**SHAPE, "tokens": BATCH * SHAPE["context"], "rounds": ROUNDS, "parameters": parameters("pre")}
    harness.save(kept, {"shape": shape, "connections": dict(sorted(rows.items()))})


def parameters(name: str) -> int:
    return sum(p.numel() for p in Transformer(ModelConfig(**SHAPE, residual=name)).parameters())


def step(name: str, engine: str) -> Callable[[], None]:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**SHAPE, residual=name)).to(DEVICE)
    tokens = torch.randint(SHAPE["vocab_size"], (BATCH, SHAPE["context"]), device=DEVICE)
    return harness.training_step(model, engine, tokens)


if __name__ == "__main__":
    keep_freed_memory()
    main(sys.argv[1:])
