"""How long `residuum --help` and `import residuum` take as whole processes, beside a bare start of Python.

Bound: 0.4 s for the help.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import harness

ROUNDS = 15
COMMANDS = {
    "help": [sys.executable, "-m", "residuum", "--help"],
    "import": [sys.executable, "-c", "import residuum"],
    "python": [sys.executable, "-c", "pass"],
}


def main() -> None:
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            taken[name].append(time.perf_counter() - start)
    harness.save("startup", {"bound": 0.4, **{f"{name}_seconds": statistics.median(t) for name, t in taken.items()}})


if __name__ == "__main__":
    main()
