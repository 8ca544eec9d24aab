"""A depth study as a page, as JSON and as a Markdown table."""

from __future__ import annotations

import json
from pathlib import Path

from filelock import FileLock

from residuum.audit.page import drawn, page_environment
from residuum.files import write_whole
from residuum.study.charts import depth_charts
from residuum.study.depth import BATCH, CONTEXT, LEAST_SHARE, REFERENCE, REFERENCE_LAYERS, WARMUP, Depths, Row
from residuum.study.store import Store

SCHEMA = "residuum.study.depth/1"

COLUMNS = ("connection", "layers", "warm-up", "bits per byte", "training loss", "gain", "trainable?")


def write_reports(study: Depths, store: Store) -> Path:
    """`depth.html` and `depth.json` in the store's folder, each whole; the path of the page."""
    page = store.folder / "depth.html"
    with FileLock(store.folder / ".depth.lock"):  # others may finish the same study now
        write_whole(store.folder / "depth.json", to_json(study))
        write_whole(page, to_html(study))
    return page


def to_json(study: Depths) -> str:
    """Everything, with what was seen at the start of every cell."""
    grid = study.grid
    content = {
        "schema": SCHEMA,
        "headline": study.headline,
        "grid": {
            "connections": study.names, "depths": sorted(set(grid.depths)), "seeds": grid.seeds, "steps": grid.steps,
            "d_model": grid.d_model, "lr": grid.lr, "warmup_share": WARMUP, "source": grid.source,
        },
        "unigram_bits_per_byte": study.unigram,
        "reference": {
            "connection": REFERENCE, "n_layers": REFERENCE_LAYERS, "gain": study.reference_gain,
            "least_share": LEAST_SHARE, "skipped": study.skipped,
        },
        "rows": [row.to_dict() for row in study.rows],
        "missing_cells": study.missing,
        "seconds": round(study.seconds, 3),
    }  # fmt: skip
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def to_html(study: Depths) -> str:
    """One page without a network, light and dark, for screen and paper."""
    charts = depth_charts(study)
    return (
        page_environment(Path(__file__).parent)
        .get_template("page.html.jinja")
        .render(
            study=study,
            facts=facts(study),
            gain_of=gain_of,
            charts=charts,
            least=LEAST_SHARE,
            reference=REFERENCE,
            reference_layers=REFERENCE_LAYERS,
            **drawn(charts),
        )
    )


def to_markdown(study: Depths) -> str:
    """The headline and the table."""
    lines = [f"**{study.headline}**", "", *(f"- {fact}" for fact in facts(study)), ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells_of(row)) + " |" for row in study.rows]
    return "\n".join(lines) + "\n"


def cells_of(row: Row) -> tuple[str, ...]:
    """A row of the table, in words and numbers."""
    diverged = f", {row.diverged} diverged" if row.diverged else ""
    return (
        row.connection,
        str(row.n_layers),
        "yes" if row.warmup else "no",
        "–" if row.bits is None else str(row.bits),
        "–" if row.loss is None else str(row.loss),
        gain_of(row),
        row.said + diverged,
    )


def gain_of(row: Row) -> str:
    """As a share of the reference's; how far below zero is no matter."""
    return "–" if row.gain is None else f"{row.gain:.0%}" if row.gain >= 0 else "below 0"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def facts(study: Depths) -> list[str]:
    """What was run, in lines."""
    grid = study.grid
    said = [
        f"{grid.steps} steps of {BATCH * CONTEXT:,} bytes of {grid.source} at width {grid.d_model}, peak learning rate "
        f"{grid.lr:g}, warm-up over {WARMUP:.0%} of the steps or none",
        f"{grid.seeds} seeds a row; {_time(study.seconds)} of computing in all",
    ]
    if study.unigram is not None:
        said.append(f"a model that knows byte frequencies alone needs {study.unigram:.2f} bits per byte")
    if study.reference_gain is not None:
        said.append(
            f"the reference, {REFERENCE} with {REFERENCE_LAYERS} layers, needs {study.reference_gain:.2f} fewer; "
            f"trained has what gains at least {LEAST_SHARE:.0%} of that"
        )
    return said
