"""The charts of a depth study. One idea each; the title says what was found."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from residuum.audit.page import FINDING, IDENTITY, STATE, finished
from residuum.study.depth import Depths, Row

# Eight that the colour-blind tell apart (Okabe, Ito 2008, https://jfly.uni-koeln.de/color/), lightened or darkened
# where white or black paper would swallow them; a ninth line takes the first again, with the next dash.
COLOURS = ("#2F7FD0", "#E07B00", "#2A9D78", "#C55A9A", "#8A8F98", "#56B4E9", "#B39B00", "#D1344B")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2])


def depth_charts(study: Depths) -> list[dict[str, Any]]:
    """Trainable or not, loss by depth, and gradient and variance by layer at the first weights of the deepest."""
    halves = [[row for row in study.rows if row.warmup is warmup] for warmup in (True, False)]
    charts = [_map(study, rows) for rows in halves if study.reference_gain is not None]
    charts += [_loss(study, rows) for rows in halves]
    deepest = [row for row in study.rows if row.n_layers == max(study.grid.depths) and row.warmup and row.at_start]
    if deepest:
        by_layer = [
            _by_layer(study, deepest, "state_gradient", "norm of the gradient", "gradient"),
            _by_layer(study, deepest, "state_variance", "variance of the state's entries", "stream variance"),
        ]
        charts += [chart for chart in by_layer if chart]
    return charts


def _map(study: Depths, rows: list[Row]) -> dict[str, Any]:
    values: list[dict[str, Any]] = [
        {
            "connection": row.connection,
            "layers": row.n_layers,
            "trained": row.trained,
            "said": row.said,
            "share": f"{row.trained}/{row.seeds}",
            "verdict": _verdict(row),
        }
        for row in rows
        if row.finished == row.seeds
    ]
    trains = sum(value["verdict"] == "trainable" for value in values)
    how = "with" if rows[0].warmup else "without"
    colours = alt.Scale(domain=["trainable", "some seeds", "not trainable"], range=[IDENTITY, STATE, FINDING])
    base = alt.Chart(alt.Data(values=values)).encode(
        _depths("layers:O", labelAngle=0),
        alt.Y("connection:N", title=None, sort=study.names),
        tooltip=["connection:N", "layers:O", "said:N"],
    )
    cells = base.mark_rect(stroke="currentColor", strokeOpacity=0.15).encode(
        alt.Color("verdict:N", scale=colours, legend=alt.Legend(title=None, orient="top", symbolType="square"))
    )
    texts = base.mark_text(color="white", fontSize=11, fontWeight="bold").encode(text="share:N")
    title = f"{how} warm-up, {trains} of {len(values)} train (seeds that did, of all)"
    chart = alt.layer(cells, texts).properties(title=title)
    return finished(chart, height=max(90, 24 * len(study.names)))


def _verdict(row: Row) -> str:
    return "trainable" if row.trained == row.seeds else "some seeds" if row.trained else "not trainable"


def _loss(study: Depths, rows: list[Row]) -> dict[str, Any]:
    values: list[dict[str, Any]] = [
        {
            "connection": row.connection,
            "layers": row.n_layers,
            "bits": row.bits.mean,
            "low": row.bits.mean - (row.bits.half or 0),
            "high": row.bits.mean + (row.bits.half or 0),
        }
        for row in rows
        if row.bits is not None
    ]
    how = "with" if rows[0].warmup else "without"
    most = max(study.grid.depths)
    deepest = [value for value in values if value["layers"] == most]
    title = f"nothing finished at {most} layers {how} warm-up"
    if deepest:
        best = min(deepest, key=lambda value: value["bits"])
        title = f"{how} warm-up, {best['connection']} is best at {most} layers: {best['bits']:.2f} bits per byte"
    base = alt.Chart(alt.Data(values=values)).encode(
        _depths("layers:O", labelAngle=0), **_lines(study), tooltip=["connection:N", "layers:O", _short("bits")]
    )
    axis, scale = _bits_axis(study, values)
    y = alt.Y("bits:Q", title=axis, scale=scale)
    layers = [
        base.mark_errorbar(thickness=2).encode(alt.Y("low:Q", title=axis, scale=scale), alt.Y2("high:Q")),
        base.mark_line().encode(y, strokeDash=_dash(study)),
        base.mark_point(filled=True, size=40, opacity=1).encode(y),
    ]
    if study.unigram is not None:
        rule = alt.Chart(alt.Data(values=[{"bits": study.unigram, "name": "byte frequencies alone"}]))
        layers.append(rule.mark_rule(strokeDash=[4, 4], color=STATE).encode(y="bits:Q"))
        layers.append(
            rule.mark_text(align="right", baseline="bottom", dy=-3, color="currentColor").encode(
                x=alt.XValue("width"), y="bits:Q", text="name:N"
            )
        )
    return finished(alt.layer(*layers).properties(title=title), height=240)


def _bits_axis(study: Depths, values: list[dict[str, Any]]) -> tuple[str, alt.Scale]:
    """A dead network needs 8 bits per byte, and would press all others into one line: the axis ends before that."""
    if study.unigram is None or not values:
        return "held-out bits per byte", alt.Scale(zero=False)
    low = min(value["low"] for value in values)
    top = study.unigram + max(0.5 * (study.unigram - low), 0.1)
    beyond = any(value["high"] > top for value in values)
    title = f"held-out bits per byte{f' (top: {top:.1f} or more)' if beyond else ''}"
    return title, alt.Scale(domain=[min(low, study.unigram), top], clamp=True, nice=False)


def _by_layer(study: Depths, rows: list[Row], key: str, axis: str, what: str) -> dict[str, Any] | None:
    """The geometric mean over seeds, as a line over the layers, on a logarithmic axis; None where none has a place."""
    means = {
        row.connection: [_geometric(place) for place in zip(*(start[key] for start in row.at_start), strict=True)]
        for row in rows
    }
    values: list[dict[str, Any]] = [
        {"connection": name, "layer": layer, "value": value}
        for name, places in means.items()
        for layer, value in enumerate(places)
        if value is not None
    ]
    if not values:
        return None
    # Read in the direction in which it flows: the stream upwards, the gradient downwards.
    title = _most_changed({n: each[::-1] if what == "gradient" else each for n, each in means.items()}, what)
    positive = [value["value"] for value in values]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    each = max(1, math.ceil((high - low) / 6))
    ticks = [10.0**power for power in range(low, high + 1, each)]
    scale = alt.Scale(type="log", domain=[10.0**low, 10.0 ** max(high, low + 1)])
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_line()
        .encode(
            alt.X("layer:Q", title="layer (0: the embedding)", axis=alt.Axis(tickMinStep=1, format="d")),
            alt.Y("value:Q", title=axis, scale=scale, axis=alt.Axis(format=".0e", values=ticks)),
            **_lines(study),
            strokeDash=_dash(study),
            tooltip=["connection:N", "layer:Q", alt.Tooltip("value:Q", format=".3g")],
        )
        .properties(title=title)
    )
    return finished(chart, height=240)


def _geometric(values: tuple[float | None, ...]) -> float | None:
    """None where one is zero or not finite: a logarithmic axis has no place for it."""
    if any(value is None or value <= 0 for value in values):
        return None
    return math.exp(sum(math.log(value) for value in values if value) / len(values))


def _most_changed(ways: dict[str, list[float | None]], what: str) -> str:
    """What becomes of the connection that loses or changes most on its way through all layers."""
    reach = {name: way.index(None) if None in way else len(way) for name, way in ways.items()}
    layers = len(next(iter(ways.values()))) - 1
    first = min(reach, key=lambda name: reach[name])
    if reach[first] <= layers:
        return f"before training, {first}'s {what} is lost after {reach[first]} of {layers} layers"
    changes = {name: way[-1] / way[0] for name, way in ways.items() if way[0] and way[-1]}
    most = max(changes, key=lambda name: abs(math.log(changes[name])))
    return f"before training, {most}'s {what} changes most: by a factor of {changes[most]:.2g} over {layers} layers"


def _depths(field: str, **axis: Any) -> alt.X:
    return alt.X(field, title="layers", axis=alt.Axis(**axis))


def _short(field: str) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:Q", format=".3f")


def _lines(study: Depths) -> dict[str, Any]:
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(study.names))]
    legend = alt.Legend(title=None, orient="top", columns=4 if len(study.names) > 4 else 0, symbolType="stroke")
    return {"color": alt.Color("connection:N", scale=alt.Scale(domain=study.names, range=colours), legend=legend)}


def _dash(study: Depths) -> alt.StrokeDash:
    """The same for the first eight: a line of one colour and dash is one connection."""
    dashes = [DASHES[i // len(COLOURS) % len(DASHES)] for i in range(len(study.names))]
    legend = None if len(study.names) <= len(COLOURS) else alt.Legend(title=None, orient="top", columns=4)
    return alt.StrokeDash("connection:N", scale=alt.Scale(domain=study.names, range=dashes), legend=legend)
