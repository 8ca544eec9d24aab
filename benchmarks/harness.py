"""Interleaved timing and where its results go: a machine's speed drifts, a ratio within one run does not."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from residuum.model import Transformer

RESULTS = Path(__file__).parent / "results"


def ratio(measured: Callable[[], Any], against: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Run both in turn; the median of measured / against round by round, its quartiles, and both medians in seconds."""
    for function in (measured, against):
        function()
    pairs = []
    for number in range(rounds):
        # Whoever goes second finds the caches as the first left them, so they take turns.
        order = (measured, against) if number % 2 else (against, measured)
        took = {function: _time(function) for function in order}
        pairs.append((took[measured], took[against]))
    return of_pairs(pairs)


def of_pairs(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """The figures of `ratio` from what both took in each round."""
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    return {
        "ratio": middle,
        "quartile_low": low,
        "quartile_high": high,
        "seconds": statistics.median(a for a, _ in pairs),
        "seconds_against": statistics.median(b for _, b in pairs),
        "rounds": len(pairs),
    }


def training_step(model: Transformer, engine: str, tokens: Tensor) -> Callable[[], None]:
    """Gradients and AdamW's update on `tokens`, where they are; on a CUDA device in bfloat16, and waited for."""
    import torch

    from residuum.engine import make_engine

    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    gradients, cuda = make_engine(engine), tokens.is_cuda

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            gradients.loss_and_grads(model, (tokens, tokens))
        optimizer.step()
        if cuda:
            torch.cuda.synchronize()

    return step


def commit() -> str | None:
    """Of the code that was measured, if it lies in a repository; what was not committed then is not in it."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, cwd=RESULTS, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def save(name: str, figures: dict[str, Any]) -> None:
    """Print the figures and keep them beside what made them."""
    made_with = {
        "commit": commit(),
        "torch": version("torch"),
        "python": platform.python_version(),
        "machine": _processor(),
    }
    content = json.dumps({**figures, "made_with": made_with}, indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(content + "\n")
    print(content)


def _time(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _processor() -> str:
    import torch

    info = Path("/proc/cpuinfo")
    names = (
        [x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"
