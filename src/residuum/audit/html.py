"""The audit as one self-contained page: no network, light and dark, screen and paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from residuum.audit.audit import STRUCTURE_ONLY, Audit, counted
from residuum.audit.charts import stream_charts
from residuum.audit.page import drawn, page_environment
from residuum.audit.paths import shorten
from residuum.audit.rows import Row, fold, index_of, name_of, span

# A page of hundreds of charts answers nothing; the streams beyond these are in the table and the JSON.
CHARTED_STREAMS = 4


@dataclass(frozen=True)
class Section:
    """One stream on the page: a line for each group of its rows, where that is shorter than all of them."""

    title: str
    charts: list[dict[str, Any]]
    groups: list[list[Row]]
    rows: list[list[Row]]


@dataclass(frozen=True)
class Part:
    """What a page says of a run besides its residual stream: a sentence or two, a table, charts.

    The first of the `rows` names the columns, the first column the rows.
    """

    title: str
    note: str
    charts: list[dict[str, Any]]
    finding: str = ""
    rows: list[tuple[str, ...]] = field(default_factory=list)


def render_page(
    audit: Audit,
    training: dict[str, Any] | None = None,
    facts: list[str] | None = None,
    sample: str = "",
    parts: dict[str, Any] | None = None,
    more: Sequence[Part] = (),
) -> str:
    """`training` is a chart of the run's own curve, `facts` are lines under the verdict, `sample` is text it wrote.

    `parts` is a chart of both parts of the gradient as the run measured them; `more` stands between it and the streams.
    """
    environment = page_environment(Path(__file__).parent)
    environment.filters["shorten"] = shorten
    environment.filters["number"] = lambda value: f"{value:.3g}"
    environment.filters.update(name_of=name_of, index_of=index_of, span=span)
    sections = []
    for number, (stream, rows) in enumerate(audit.streams):
        title = f"Residual stream from {stream.origin or 'the input'}: {counted(len(rows), 'connection')}"
        measured = [row.measured for row in rows if row.measured]
        charts = stream_charts(measured) if measured and number < CHARTED_STREAMS else []
        sections.append(Section(title, charts, fold(rows), [[row] for row in rows]))
    charts = [
        *(chart for chart in (training, parts) if chart),
        *(chart for part in more for chart in part.charts),
        *(chart for section in sections for chart in section.charts),
    ]
    return environment.get_template("page.html.jinja").render(
        audit=audit,
        structure_only=STRUCTURE_ONLY,
        training=training,
        parts=parts,
        more=more,
        facts=facts or [],
        sample=sample,
        sections=sections,
        **drawn(charts),
    )
