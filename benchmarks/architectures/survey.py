"""Discovery against expectations that were written by reading the modelling code: docs/architectures.md.

    python benchmarks/architectures/survey.py [CLASS ...]

Builds every architecture of `expected/` from its default config with few layers and small sizes, traces it, and
compares the number of connections. Each is built in a process that may take only so much memory and time, for some
default configs take more than a laptop has.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tomllib
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "architectures.md"
MEMORY = 5 << 30
SECONDS = 150
LAYERS = 3

GROUPS = {
    "causal_lm": "Causal language models, on token ids",
    "masked_lm": "Masked language models, on token ids",
    "encoder_decoder": "Encoder-decoders, on token ids for both",
    "vision": "Vision models, on pixels",
    "speech": "Speech models, on audio features and token ids",
    "audio": "Audio models, on waveforms or audio features",
}


def main() -> None:
    names = sys.argv[1:]
    expected = read_expected()
    if unknown := [name for name in names if name not in expected]:
        sys.exit(f"no expectation for {', '.join(unknown)}: choose from {HERE / 'expected'}")
    todo = names or list(expected)
    rows: dict[str, dict[str, Any]] = {}
    while todo:
        # A process does what it can; what killed it is told by its absence, and the rest goes to the next.
        for name, row in run(todo):
            rows[name] = row
            print(f"{len(rows):4} {name}: {told(row)}", file=sys.stderr, flush=True)
        left = [name for name in todo if name not in rows]
        if left:
            rows[left[0]] = {"cannot_run": "its process took too much memory or died"}
        todo = left[1:]
    if not names:
        results = HERE.parent / "results" / "architectures.json"
        made_with = {"torch": version("torch"), "transformers": version("transformers")}
        results.write_text(json.dumps({"made_with": made_with, "rows": rows}, indent=1) + "\n")
        TABLE.write_text(page(expected, rows, made_with))
        print(summary(rows))


def read_expected() -> dict[str, dict[str, Any]]:
    """Class name to expectation, with the group that it belongs to."""
    return {
        name: {**entry, "group": group}
        for group in GROUPS
        for name, entry in tomllib.loads((HERE / "expected" / f"{group}.toml").read_text()).items()
    }


def run(names: list[str]) -> Any:
    command = [sys.executable, __file__, "--child"]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write("\n".join(names))
        child.stdin.close()
        for line in child.stdout:
            yield json.loads(line)


def child() -> None:
    """Look at the classes named on standard input, one JSON line each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(HERE))
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_late)
    expected = read_expected()
    for name in sys.stdin.read().split():
        signal.alarm(SECONDS)
        try:
            row = look(getattr(transformers, name), expected[name])
        except BaseException as error:
            row = {"cannot_run": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        signal.alarm(0)
        print(json.dumps([name, row]), flush=True)


def _too_late(*_: Any) -> None:
    raise TimeoutError(f"not done after {SECONDS} seconds")


def look(cls: Any, expectation: dict[str, Any]) -> dict[str, Any]:
    from build import small_model

    import residuum

    model, inputs, notes = small_model(cls, layers=LAYERS)
    graph = residuum.trace(model, **inputs)
    found = list(graph.residuals)
    return {
        "expected": value_of(expectation["connections"], model.config),
        "found": len(found),
        "inner_expected": value_of(expectation.get("inner", "0"), model.config),
        "inner_found": sum(len(residual.inner) for residual in found),
        "streams": len(graph.streams),
        "kinds": Counter(f"{residual.kind} {residual.placement}" for residual in found).most_common(),
        "lines": Counter(f"{Path(r.source.file).name}:{r.source.line}" for r in found).most_common(),
        "made": notes,
    }


BUILTINS = {
    f.__name__: f for f in (sum, len, range, min, max, enumerate, zip, sorted, any, all, int, bool, getattr)
}  # fmt: skip


def value_of(expression: str, config: Any) -> int:
    """An expectation is an expression over the config `c`."""
    return eval(expression, {"__builtins__": BUILTINS, "c": config})


INTRODUCTION = """\
Each architecture is built from its default config, cut to a few layers and small sizes, and traced. The number expected
is an expression over that config, written by reading the modelling code, not by running residuum; the expressions, and
what was read, lie in `benchmarks/architectures/expected/`. *Inner* connections stand alone inside a branch, such as a
state-space scan's own skip; they are listed with the connection whose branch it is, and do not count here."""


def agrees(row: dict[str, Any]) -> bool:
    return row["found"] == row["expected"]


def told(row: dict[str, Any]) -> str:
    if "cannot_run" in row:
        return f"cannot run here: {row['cannot_run'][:90]}"
    return f"{row['found']} found" + ("" if agrees(row) else f", {row['expected']} expected")


def summary(rows: dict[str, dict[str, Any]]) -> str:
    ran = [row for row in rows.values() if "found" in row]
    same = sum(map(agrees, ran))
    return f"{same} of {len(ran)} architectures agree ({same / len(ran):.1%}); {len(rows) - len(ran)} cannot run here"


def page(expected: dict[str, dict[str, Any]], rows: dict[str, dict[str, Any]], made_with: dict[str, str]) -> str:
    lines = [
        "# Discovery over the architectures of transformers",
        "",
        f"**{summary(rows)}.** Written by `make survey` with transformers {made_with['transformers']}.",
        "",
        INTRODUCTION,
    ]
    for group, title in GROUPS.items():
        mine = {name: row for name, row in rows.items() if expected[name]["group"] == group}
        lines += ["", f"## {title}", "", "| class | expected | found | inner: expected, found | kinds and norms |"]
        lines += ["| --- | ---: | ---: | ---: | --- |"]
        for name, row in mine.items():
            if "found" in row:
                inner = f"{row['inner_expected']}, {row['inner_found']}"
                inner = "" if inner == "0, 0" else inner
                found = f"{row['found']}" if agrees(row) else f"**{row['found']}**"
                kinds = ", ".join(f"{count} {kind}" for kind, count in row["kinds"])
                lines.append(f"| {name} | {row['expected']} | {found} | {inner} | {kinds} |")
        if idle := {name: row for name, row in mine.items() if "found" not in row}:
            lines += ["", "Cannot run here:", ""]
            lines += [f"- {name}: {row['cannot_run'][:160].replace('|', '/')}" for name, row in idle.items()]
    differing = {name: row for name, row in rows.items() if "found" in row and not agrees(row)}
    lines += ["", "## Where they differ", ""]
    for name, row in differing.items():
        note = expected[name].get("note", expected[name]["read"])
        where = ", ".join(f"{count} at {line}" for line, count in row["lines"])
        lines.append(f"- **{name}**: expected {row['expected']}, found {row['found']} ({where}). {note}.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    child() if sys.argv[1:] == ["--child"] else main()
