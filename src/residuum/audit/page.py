"""What every page of ours shares: its look, and how its charts are drawn without a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import vl_convert

# Told apart by the colour-blind too, on white and on black alike.
IDENTITY, BRANCH, STATE, FINDING = "#2F7FD0", "#E07B00", "#8A8F98", "#D1344B"


def thinned(lines: Sequence[dict[str, Any]], most: int) -> Sequence[dict[str, Any]]:
    """At most `most` of the lines, evenly chosen, the last one among them."""
    return lines[:: -max(1, math.ceil(len(lines) / most))][::-1]


def percent(share: float) -> str:
    """With one decimal, below a hundredth with two."""
    return f"{share:.1%}" if share >= 0.01 or not share else f"{share:.2%}"


def page_environment(folder: Path) -> jinja2.Environment:
    """For the templates of `folder`, which may include `style.css.jinja` and `charts.jinja`."""
    loader = jinja2.FileSystemLoader([folder, Path(__file__).parent])
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def drawn(charts: list[dict[str, Any]]) -> dict[str, Any]:
    """What a template takes to draw `charts`, made by `finished`, each in the element called numbered[id(chart)]."""
    return {
        "specs": {f"chart-{i}": chart["spec"] for i, chart in enumerate(charts)},
        "numbered": {id(chart): f"chart-{i}" for i, chart in enumerate(charts)},
        "vega": _vega() if charts else "",
        "colours": {"identity": IDENTITY, "branch": BRANCH, "state": STATE, "finding": FINDING},
        "version": version("residuum"),
        "id": id,
    }


def finished(chart: Any, height: int = 210) -> dict[str, Any]:
    """Its title and its Vega-Lite specification.

    Colours follow the page's own, so that one chart serves light and dark, and the width follows the screen's.
    """
    spec = chart.properties(width="container", height=height).to_dict()
    title = spec.pop("title")
    spec["config"] = {
        "background": "transparent",
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "axis": {
            "labelColor": "currentColor", "titleColor": "currentColor", "gridColor": "currentColor",
            "gridOpacity": 0.12, "domainColor": "currentColor", "domainOpacity": 0.4, "tickColor": "currentColor",
            "tickOpacity": 0.4, "titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 12,
        },
        "legend": {
            "labelColor": "currentColor", "titleColor": "currentColor", "titleFontWeight": "normal",
            "labelFontSize": 12, "symbolType": "circle",
        },
    }  # fmt: skip
    return {"title": title, "spec": spec}


@cache
def _vega() -> str:
    """The program that draws the charts; making it takes seconds."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
