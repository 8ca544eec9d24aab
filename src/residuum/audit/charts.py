"""The charts of a report. One idea each; the title says what was found."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from residuum.audit.page import BRANCH, IDENTITY, STATE, finished
from residuum.stream import Measured

# Of more connections than this neither points nor ticks are drawn one by one.
CROWDED = 60

# How many earlier steps stand palely behind the last one.
EARLIER = 4


def stream_charts(measured: list[Measured]) -> list[dict[str, Any]]:
    """Stream norm, write share and gradient by depth for one stream, as Vega-Lite specifications."""
    rows = [_row(m) for m in measured]
    charts = [_stream_norm(rows), _write_share(rows)]
    carrying = [row for row in rows if row["identity"] is not None and row["gradient"] is not None]
    if carrying:
        charts += [_gradient(carrying), _paths(carrying)]
    return [finished(chart) for chart in charts]


def training_chart(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Bits per byte over the steps of a run, beside the byte bigram model's; None where nothing was evaluated."""
    evaluated = [
        {"step": x["step"], "bits": x["bits_per_byte"], "text": "held out"} for x in lines if "bits_per_byte" in x
    ]
    right = [(x["exact_match"], x.get("exact_match_by_kind") or {}) for x in lines if "exact_match" in x]
    trained = [
        {"step": x["step"], "bits": x["train_bits_per_byte"], "text": "training batch"}
        for x in lines
        if "train_bits_per_byte" in x
    ]
    bigram = next((x["bigram_bits_per_byte"] for x in lines if "bigram_bits_per_byte" in x), None)
    if not evaluated:
        return None
    last = evaluated[-1]
    title = f"held-out text costs {last['bits']:.2f} bits per byte after {last['step']:,} steps"
    if right:
        of_all, by_kind = right[-1]
        kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in by_kind.items()) if 1 < len(by_kind) <= 4 else ""
        asked = f"held-out questions{f' ({kinds})' if kinds else ''}"
        title = f"{of_all:.1%} of {asked} are answered right after {last['step']:,} steps"
    if bigram is not None:
        below = 1 - last["bits"] / bigram
        title += f", {abs(below):.0%} {'below' if below >= 0 else 'above'} a byte bigram model"
    colour = alt.Color(
        "text:N",
        scale=alt.Scale(domain=["held out", "training batch"], range=[IDENTITY, STATE]),
        legend=alt.Legend(title=None, orient="top"),
    )
    x = alt.X("step:Q", title="step", axis=alt.Axis(tickCount=6))
    y = alt.Y("bits:Q", title="bits per byte of the answers" if right else "bits per byte", scale=alt.Scale(zero=False))
    tooltip = [alt.Tooltip("step:Q"), alt.Tooltip("bits:Q", format=".3f"), alt.Tooltip("text:N")]
    layers = [
        alt.Chart(alt.Data(values=trained)).mark_line(strokeWidth=1, opacity=0.7).encode(x, y, colour),
        alt.Chart(alt.Data(values=evaluated)).mark_line(point=True).encode(x, y, colour, tooltip=tooltip),
    ]
    if bigram is not None:
        rule = alt.Chart(alt.Data(values=[{"bits": bigram, "name": "byte bigram model"}]))
        layers.append(rule.mark_rule(strokeDash=[4, 4], color=STATE).encode(y="bits:Q"))
        layers.append(
            rule.mark_text(align="right", baseline="bottom", dy=-3, color="currentColor").encode(
                x=alt.XValue("width"), y="bits:Q", text="name:N"
            )
        )
    return finished(alt.layer(*layers).properties(title=title))


def parts_chart(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Both parts of the gradient by depth at the last recorded step of a run, and palely at some before it.

    None where no step recorded them: only the explicit engine does. `steps` are those shown, the last one last.
    """
    recorded = [x for x in lines if x.get("gradient_parts")]
    if not recorded:
        return None
    earlier = recorded[: -1 : max(1, math.ceil((len(recorded) - 1) / EARLIER))]
    shown = {x["step"]: x["gradient_parts"] for x in (*earlier, recorded[-1])}
    names = ("identity path", "branch path")
    values = [
        {"step": step, "connection": depth, "part": name, "value": value}
        for step, parts in shown.items()
        for depth, pair in enumerate(parts)
        for name, value in zip(names, pair, strict=True)
        if value is not None
    ]
    last, first = recorded[-1], recorded[0]
    title = f"the identity path took {_identity_share(last['gradient_parts']):.0%} of the gradient"
    title += f" on average at step {last['step']}"
    if first is not last:
        title += f", {_identity_share(first['gradient_parts']):.0%} at step {first['step']}"
    scale, ticks, values = _axis(values)
    old, new = ([v for v in values if (v["step"] == last["step"]) == is_last] for is_last in (False, True))
    encoding = (
        _depth(values),
        alt.Y("value:Q", title="norm of the gradient", scale=scale, axis=ticks),
        alt.Color(
            "part:N",
            scale=alt.Scale(domain=names, range=[IDENTITY, BRANCH]),
            legend=alt.Legend(title=None, orient="top", symbolOpacity=1),
        ),
        alt.Detail("step:O"),
    )
    tooltip = ["step:Q", "connection:Q", "part:N", alt.Tooltip("value:Q", format=".3g")]
    layers = [
        alt.Chart(alt.Data(values=old)).mark_line(strokeWidth=1, opacity=0.35).encode(*encoding, tooltip=tooltip),
        alt.Chart(alt.Data(values=new)).mark_line().encode(*encoding, tooltip=tooltip),
    ]
    if len(last["gradient_parts"]) <= CROWDED:
        layers.append(
            alt.Chart(alt.Data(values=new)).mark_point(filled=True, size=40).encode(*encoding, tooltip=tooltip)
        )
    return {**finished(alt.layer(*layers).properties(title=title)), "steps": list(shown)}


def _identity_share(parts: list[list[float | None]]) -> float:
    finite = [(identity, branch) for identity, branch in parts if identity is not None and branch is not None]
    shares = [identity / (identity + branch) for identity, branch in finite if identity + branch]
    return sum(shares) / len(shares) if shares else 0.0


def _row(m: Measured) -> dict[str, Any]:
    backward = m.backward
    return {
        "connection": m.residual.index,
        "branch": m.residual.branch or m.residual.module,
        "source": f"{m.residual.source.file.rsplit('/', 1)[-1]}:{m.residual.source.line}",
        "state": _number(m.forward.state_rms),
        "write": _number(m.forward.write_rms),
        "share": _number(m.forward.write_share),
        "identity": backward and _number(backward.identity),
        "gradient": backward and _number(backward.branch),
        "arriving": backward and _number(backward.arriving),
    }


def _stream_norm(rows: list[dict[str, Any]]) -> Any:
    first, last = rows[0]["state"], rows[-1]["state"]
    if first and last:
        change = last / first
        title = f"the stream's norm ends at {change:.2g}× where it began" if len(rows) > 1 else "the stream's norm"
    else:
        title = "the stream's norm is not finite everywhere"
    return _two_lines(rows, "RMS of an entry", {"state": ("state", STATE), "write": ("write", BRANCH)}).properties(
        title=title
    )


def _write_share(rows: list[dict[str, Any]]) -> Any:
    finite = [row for row in rows if row["share"] is not None]
    largest = max(finite, key=lambda row: row["share"], default=None)
    title = f"{largest['branch']} writes most: {largest['share']:.0%}" if largest else "no write is finite"
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(color=BRANCH)
        .encode(
            _bars(rows),
            alt.Y("share:Q", title="write / (skip + write)", axis=alt.Axis(format="~%")),
            tooltip=["branch:N", "source:N", alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(title=title)
    )


def _gradient(rows: list[dict[str, Any]]) -> Any:
    first, last = rows[0]["arriving"], rows[-1]["arriving"]
    if len(rows) > 1 and first is not None and last:
        start, end = rows[0]["connection"], rows[-1]["connection"]
        title = f"gradient reaches connection {start} at {first / last:.2g}× that of connection {end}"
    else:
        title = "gradient on both paths"
    lines = {"identity": ("identity path", IDENTITY), "gradient": ("branch path", BRANCH)}
    return _two_lines(rows, "norm of the gradient", lines).properties(title=title)


def _paths(rows: list[dict[str, Any]]) -> Any:
    parts = (("identity path", "identity", IDENTITY), ("branch path", "gradient", BRANCH))
    values = [{**row, "part": name, "value": row[key]} for row in rows for name, key, _ in parts]
    total = [row["identity"] / (row["identity"] + row["gradient"]) for row in rows if row["identity"] + row["gradient"]]
    mean = sum(total) / len(total) if total else 0.0
    return (
        alt.Chart(alt.Data(values=values))
        .mark_bar()
        .encode(
            _bars(rows),
            alt.Y("value:Q", title="share of both parts", stack="normalize", axis=alt.Axis(format="%")),
            alt.Color(
                "part:N",
                scale=alt.Scale(domain=[name for name, _, _ in parts], range=[colour for _, _, colour in parts]),
                legend=alt.Legend(title=None, orient="top"),
            ),
            order=alt.Order("part:N", sort="descending"),
            tooltip=["branch:N", "part:N", alt.Tooltip("value:Q", format=".3g"), "source:N"],
        )
        .properties(title=f"the identity path takes {mean:.0%} of the gradient on average")
    )


def _two_lines(rows: list[dict[str, Any]], axis: str, lines: dict[str, tuple[str, str]]) -> Any:
    values = [
        {**{k: row[k] for k in ("connection", "branch", "source")}, "value": row[key], "part": name}
        for row in rows
        for key, (name, _) in lines.items()
        if row[key] is not None
    ]
    scale, ticks, values = _axis(values)
    base = alt.Chart(alt.Data(values=values)).encode(
        _depth(values),
        alt.Y("value:Q", title=axis, scale=scale, axis=ticks),
        alt.Color(
            "part:N",
            scale=alt.Scale(domain=[n for n, _ in lines.values()], range=[c for _, c in lines.values()]),
            legend=alt.Legend(title=None, orient="top"),
        ),
        tooltip=["branch:N", "part:N", alt.Tooltip("value:Q", format=".3g"), "source:N"],
    )
    lines_alone = len(rows) > CROWDED
    return base.mark_line() if lines_alone else alt.layer(base.mark_line(), base.mark_point(filled=True, size=40))


def _axis(values: list[dict[str, Any]]) -> tuple[alt.Scale, alt.Axis, list[dict[str, Any]]]:
    """A scale for `value` and its ticks, and the values that it can show."""
    positive = [v["value"] for v in values if v["value"] > 0]
    if max(positive, default=1) / min(positive, default=1) <= 20:
        return alt.Scale(zero=True), alt.Axis(format="~g", tickCount=5), values
    # On a linear axis the smaller line would lie on the ground.
    low, high = (math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive))))
    ticks = alt.Axis(format="~g", values=[10.0**power for power in range(low, high + 1)])
    shown = [v for v in values if v["value"] > 0]
    return alt.Scale(type="log", domain=[10.0**low, 10.0**high]), ticks, shown


def _depth(values: list[dict[str, Any]]) -> alt.X:
    found = sorted({value["connection"] for value in values})
    # Between two, Vega puts a tick of its own, for all that tickMinStep says.
    few: dict[str, Any] = {"values": found} if len(found) < 3 else {}
    axis = alt.Axis(tickMinStep=1, format="d", labelOverlap=True, **few)
    return alt.X("connection:Q", title="connection, in order of depth", axis=axis)


def _bars(rows: list[dict[str, Any]]) -> alt.X:
    """One bar a connection; a tick for each only as long as they can be told apart."""
    shown = [row["connection"] for row in rows[:: math.ceil(len(rows) / CROWDED)]]
    axis = alt.Axis(labelAngle=0, labelOverlap=True, labelSeparation=6, values=shown)
    return alt.X("connection:O", title="connection, in order of depth", axis=axis)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
