"""What a monitor costs somebody else's training: a step under `residuum.Monitor` against the same step without it.

Bounds: a measured step at most 1.3 times; with `every=100` at most 1.01 times on average. Compared: forward, loss,
backward and AdamW at GPT-2 small's shape, and of a ternary model of 12 M, whose levels are looked at too; without a
bound, for it runs the loss twice more, also with `rerun`. The average is put together from the measured step's ratio
and from the time that an unmeasured block itself takes, for a difference of nanoseconds drowns in the noise of whole
steps.
"""

from __future__ import annotations

import time

import torch

import harness
import residuum
from residuum.model import ModelConfig, Transformer

SHAPE = ModelConfig(vocab_size=50257, context=1024, d_model=768, n_layers=12, n_heads=12)
TOKENS = {64: 20, 1024: 8}  # and the rounds
TERNARY = ModelConfig(
    vocab_size=1024, context=256, d_model=384, n_layers=6, n_heads=6, n_kv_heads=2, linear="ternary", norm="rmsnorm",
    positions="rotary", activation="squared_reglu", bias=False,
)  # fmt: skip
EVERY = 100


def measure(config: ModelConfig, rows: int, tokens: int, rounds: int, rerun: bool = False) -> dict[str, float]:
    torch.manual_seed(0)
    model = Transformer(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x = torch.randint(config.vocab_size, (rows, tokens))
    lines: list[dict] = []
    monitor = residuum.Monitor(model, every=1, to=lines.append)

    def step() -> None:
        model.loss(x, x).backward()
        optimizer.step()
        optimizer.zero_grad()

    def watched() -> None:
        with monitor:
            if rerun:
                monitor.rerun(lambda: model.loss(x, x))
            step()

    figures = harness.ratio(watched, step, rounds)
    assert len(lines) == rounds + 1 and len(lines[0]["connections"]) == 2 * config.n_layers
    block = unmeasured_block(model)
    average = 1 + (1 - 1 / EVERY) * block / figures["seconds_against"] + (figures["ratio"] - 1) / EVERY
    return {**figures, "unmeasured_block_seconds": block, f"average_at_every_{EVERY}": average}


def unmeasured_block(model: Transformer, blocks: int = 100_000) -> float:
    monitor = residuum.Monitor(model, every=10 * blocks, to=[].append, start=1)
    start = time.perf_counter()
    for _ in range(blocks):
        with monitor:
            pass
    return (time.perf_counter() - start) / blocks


def main() -> None:
    figures = {f"tokens_{tokens}": measure(SHAPE, 1, tokens, rounds) for tokens, rounds in TOKENS.items()}
    figures["ternary"] = measure(TERNARY, 8, 256, 8)
    figures["ternary_rerun"] = measure(TERNARY, 8, 256, 8, rerun=True)
    harness.save("monitor", {"bound": 1.3, f"bound_average_at_every_{EVERY}": 1.01, **figures})


if __name__ == "__main__":
    main()
