"""How many weights of a ternary map are 0: at the start by the scale that rounds them, and while small models train.

This is where the thresholds of RS310 and RS311 come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import harness
from residuum import flow
from residuum.model import ModelConfig, Transformer
from residuum.stream import RoundedMap

SEEDS, STEPS = 3, 300
SMALL = ModelConfig(
    vocab_size=16, context=24, d_model=48, n_layers=3, n_heads=3, linear="ternary", norm="rmsnorm", positions="rotary"
)

# Half of what a weight is divided by: below it, it is 0.
SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean|W| (BitNet b1.58)": lambda w: w.abs().mean() / 2,
    "0.7 mean|W| as threshold (ternary weight networks)": lambda w: 0.7 * w.abs().mean(),
    "max|W|": lambda w: w.abs().max() / 2,
}
STARTS: dict[str, Callable[[int], Tensor]] = {
    "normal": lambda d: torch.randn(d, d),
    "uniform": lambda d: torch.rand(d, d) * 2 - 1,
}


def at_the_start() -> dict[str, dict[str, float]]:
    """The share of zeros, of d × d weights."""
    torch.manual_seed(0)
    return {
        f"{start}, d = {d}": {
            name: float((w.abs() < threshold(w)).float().mean()) for name, threshold in SCALES.items()
        }
        for start, draw in STARTS.items()
        for d in (64, 512, 2048)
        for w in (draw(d),)
    }


def sums(count: int) -> Tensor:
    """Lines such as 12+34=046, of 16 letters."""
    a, b = torch.randint(100, (2, count))
    digits = [
        a // 10,
        a % 10,
        a * 0 + 10,
        b // 10,
        b % 10,
        a * 0 + 11,
        (a + b) // 100,
        (a + b) // 10 % 10,
        (a + b) % 10,
    ]
    return torch.stack(digits, 1).repeat(1, 2)


def trained(seed: int, config: ModelConfig, decay: float) -> tuple[list[RoundedMap], list[RoundedMap]]:
    """A model's ternary maps before and after its training."""
    torch.manual_seed(seed)
    model = Transformer(config)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=decay)
    before = flow(model, sums(8)).ternary
    for _ in range(STEPS):
        tokens = sums(16)
        optimizer.zero_grad()
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
    return before, flow(model, sums(8)).ternary


def main() -> None:
    figures = {}
    for activation in ("squared_relu", "swiglu"):
        for decay in (0.0, 0.1):
            every = [trained(seed, replace(SMALL, activation=activation), decay) for seed in range(SEEDS)]
            figures[f"{activation}, weight decay {decay}"] = {
                when: {
                    "zeros": _range([m.shares[1] for maps in every for m in maps[after] if m.shares]),
                    "outputs that are always 0": _range([m.dead_outputs or 0.0 for maps in every for m in maps[after]]),
                }
                for after, when in enumerate(("at the start", f"after {STEPS} steps"))
            }
    harness.save("ternary_levels", {"zeros at the start": at_the_start(), "[least, most] of all maps": figures})


def _range(values: list[float]) -> list[float]:
    return [min(values), max(values)]


if __name__ == "__main__":
    main()
