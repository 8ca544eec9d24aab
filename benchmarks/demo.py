"""The quick recipe as a whole process, installation excluded: how long, and how far below the byte bigram model.

Bounds: 180 s on two cores, and 25% below.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "residuum", "train", "quick", "--run.dir", str(run)], check=True)
        seconds = time.perf_counter() - start
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    bigram, bits = lines[0]["bigram_bits_per_byte"], lines[-1]["bits_per_byte"]
    figures = {
        "seconds": seconds,
        "bits_per_byte": bits,
        "bigram_bits_per_byte": bigram,
        "below_bigram": 1 - bits / bigram,
    }
    harness.save("demo", {"bound_seconds": 180, "bound_below_bigram": 0.25, **figures})


if __name__ == "__main__":
    main()
