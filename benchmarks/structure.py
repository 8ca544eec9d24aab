"""The structure of very large models: time and memory of a whole process, imports included.

Bounds: a 126-layer, 405-billion-parameter Llama in 15 s and 1.5 GB on two cores; time linear in the operations over 10,
100 and 1,000 layers, so that the seconds per operation do not grow.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import harness
from residuum import ModelConfig, Transformer, trace

LLAMA_405B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "num_hidden_layers": 126,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
ROUNDS = 5


def largest() -> dict[str, float | int]:
    """One run of the command on the config alone. The peak is that of the largest child of this process."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(LLAMA_405B))
        start = time.perf_counter()
        command = [sys.executable, "-m", "residuum", "audit", str(config), "--structure", "--format", "json"]
        content = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "connections": sum(len(stream["residuals"]) for stream in content["streams"]),
        "operations": content["operations"],
        "seconds": seconds,
        "processor_seconds": used.ru_utime + used.ru_stime,  # what a busy machine does not change
        "peak_bytes": used.ru_maxrss * 1024,
    }


def growth(layers: int) -> dict[str, float | int]:
    """Tracing a model of so many layers on meta tensors; the median of several rounds."""
    config = ModelConfig(vocab_size=64, context=16, d_model=64, n_layers=layers, n_heads=4)
    with torch.device("meta"):
        model, tokens = Transformer(config), torch.zeros(2, 8, dtype=torch.long)
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        graph = trace(model, tokens)
        taken.append(time.perf_counter() - start)
    seconds = sorted(taken)[ROUNDS // 2]
    return {
        "layers": layers,
        "connections": len(list(graph.residuals)),
        "operations": graph.operations,
        "seconds": seconds,
        "microseconds_per_operation": 1e6 * seconds / graph.operations,
    }


def main() -> None:
    figures = {"llama_405b": largest(), "growth": [growth(layers) for layers in (10, 100, 1000)]}
    harness.save("structure", {"bounds": {"seconds": 15, "peak_bytes": 1_500_000_000}, **figures})


if __name__ == "__main__":
    main()
