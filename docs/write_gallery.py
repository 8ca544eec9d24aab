"""Write docs/gallery/: a card for each residual connection, from its own docstring and from what was measured.

`make docs` runs it. In benchmarks/results/ cost is in residuals.json, behaviour at depth in depth.json, first weights
in first_weights.json; what they do not have, a card says was not measured.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from residuum.audit.page import IDENTITY, STATE
from residuum.files import write_whole
from residuum.model.residual import REGISTRY, Residual

FOLDER = Path(__file__).parent / "gallery"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
SOURCE = "../../src/residuum/model/residual"
LAYERS = 24
INTRODUCTION = """\
# Residual connections

Choose one by its name: `residuum train quick --model.residual deepnorm`. Each card is written by `make docs` from the
connection's own file and from measurements that anybody can repeat.

"""
TABLE = f"""\
| connection | formula of one sub-layer | cost: autograd, explicit | trains at {LAYERS} layers |
|---|---|---|---|
"""


def pages() -> dict[str, str]:
    """Every file's text by its name."""
    cost, depth, first = (_results(name) for name in ("residuals", "depth", "first_weights"))
    names = sorted(REGISTRY, key=lambda name: (name != "pre", name))
    rows = [
        f"| [{name}](#{name}) | {_code(_formula(REGISTRY[name]))} "
        f"| {_short_cost(name, cost)} | {_short_depth(name, depth)} |"
        for name in names
    ]
    cards = [_card(name, REGISTRY[name], cost, depth, first) for name in names]
    pictures = {f"{name}.svg": _picture(name, first) for name in names if name in first["connections"]}
    text = INTRODUCTION + _how_measured(cost, depth, first) + TABLE + "\n".join(rows) + "\n\n" + "\n\n".join(cards)
    return {"README.md": text + "\n", **pictures}


def _results(name: str) -> dict[str, Any]:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else {"connections": {}}


def _how_measured(cost: dict[str, Any], depth: dict[str, Any], first: dict[str, Any]) -> str:
    shape, grid = cost["shape"], depth.get("grid")
    lines = [
        f"- *Cost* is training throughput against Pre-LN of the same model, {shape['n_layers']} layers of width "
        f"{shape['d_model']}, {shape['tokens']:,} tokens a step, median and quartiles "
        f"(`python benchmarks/residuals.py`; {cost['made_with']['machine']}). Hyper-connections and mhc take the extra "
        "`packed` for it: Numba compiles what walks over their streams.",
        f"- The pictures show first weights at {first['shape']['n_layers']} layers: how large the stream is after each "
        "layer, and the loss's gradient there, Pre-LN's in grey (`python benchmarks/first_weights.py`).",
        "- *Depth* is not measured yet (`python benchmarks/depth.py`).",
    ]
    if grid:
        lines[-1] = (
            "- *Depth* is held-out bits per byte of tiny models of the standard library's text, "
            f"{grid['steps']} steps, width {grid['d_model']}, mean and 95% interval of {grid['seeds']} seeds (`python "
            f"benchmarks/depth.py` at commit {depth['made_with']['commit']}, on the text that it chooses); byte "
            f"frequencies need {depth['unigram_bits_per_byte']:.2f}. A connection "
            "trains if every seed gains a quarter of what two layers of Pre-LN gain. So few steps tell what trains at "
            "all, not what is best: differences between those that train are no ranking."
        )
    return "\n".join(lines) + "\n\n"


def _card(name: str, kind: type[Residual], cost: dict[str, Any], depth: dict[str, Any], first: dict[str, Any]) -> str:
    file = Path(inspect.getfile(kind)).name
    facts = [
        f"Use: {kind.use}" if kind.use else "",
        f"Start: {'the identity' if kind.identity_at_start else 'not the identity'}"
        f"{'' if kind.final_norm else '; the stream needs no final norm'}.",
        f"Settings: {', '.join(f'`model.{field}`' for field in kind.settings)}." if kind.settings else "",
        f"Cost: {_cost(name, cost)}",
    ]
    parts = [
        f"## {name}",
        _prose(inspect.getdoc(kind) or ""),
        "  \n".join(fact for fact in facts if fact),
        _depth_table(name, depth),
        f"![{name} at its first weights]({name}.svg)" if name in first["connections"] else "",
        f"[{file}]({SOURCE}/{file})",
    ]
    return "\n\n".join(part for part in parts if part)


def _formula(kind: type[Residual]) -> str:
    """The first sentence of the first line."""
    return re.split(r"\.(?:\s|$)", (inspect.getdoc(kind) or "").splitlines()[0])[0]


def _prose(doc: str) -> str:
    """A docstring as Markdown: links that can be clicked, and no underscore that Markdown would take for its own."""
    parts = doc.split("`")  # every other one is code, which Markdown leaves as it is
    parts[::2] = [re.sub(r"([*_])", r"\\\1", part) for part in parts[::2]]
    first, *rest = "`".join(parts).split("\n", 1)
    text = f"**{first}**\n\n{''.join(rest).strip()}"
    return re.sub(r"https://\S+?(?=[.,;]?(?:\s|$))", lambda link: f"<{link[0].replace(chr(92), '')}>", text)


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _cost(name: str, cost: dict[str, Any]) -> str:
    if name == "pre":
        return "1, what the others are compared with."
    found = cost["connections"].get(name)
    if found is None:
        return "not measured."
    more = found["parameters"] - cost["shape"]["parameters"]
    by_engine = {engine: found[engine] for engine in ("autograd", "explicit")}
    said = ", ".join(
        f"{row['throughput']:.2f} × ({row['quartile_low']:.2f}–{row['quartile_high']:.2f}) by the {engine} engine"
        for engine, row in by_engine.items()
    )
    return f"{said}; {f'{more:+,} parameters' if more else 'as many parameters'}."


def _short_cost(name: str, cost: dict[str, Any]) -> str:
    found = cost["connections"].get(name)
    if name == "pre":
        return "1"
    return (
        "not measured"
        if found is None
        else f"{found['autograd']['throughput']:.2f}, {found['explicit']['throughput']:.2f}"
    )


def _rows(name: str, depth: dict[str, Any]) -> list[dict[str, Any]]:
    return depth["connections"].get(name, [])


def _short_depth(name: str, depth: dict[str, Any]) -> str:
    deepest = {row["warmup"]: row["trainable"] for row in _rows(name, depth) if row["n_layers"] == LAYERS}
    if not deepest:
        return "not measured"
    said = {"trainable": "yes", "not trainable": "no"}
    words = [said.get(deepest[warmup], deepest[warmup]) for warmup in (True, False)]
    return words[0] if words[0] == words[1] else f"with warm-up {words[0]}, without {words[1]}"


def _depth_table(name: str, depth: dict[str, Any]) -> str:
    rows = _rows(name, depth)
    if not rows:
        return "Depth: not measured."
    depths = sorted({row["n_layers"] for row in rows})
    lines = [f"| bits per byte | {' | '.join(f'{n} layers' for n in depths)} |", f"|---|{'---|' * len(depths)}"]
    for warmup in (True, False):
        cells = [_cell(row) for n in depths for row in rows if (row["n_layers"], row["warmup"]) == (n, warmup)]
        lines.append(f"| {'with' if warmup else 'without'} warm-up | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    bits = "diverged" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.2f} ± {row['half'] or 0:.2f}"
    return bits if row["trainable"] == "trainable" else f"{bits}, {row['trainable']}"


def _picture(name: str, first: dict[str, Any]) -> str:
    seen = {who: first["connections"][who] for who in dict.fromkeys((name, "pre"))}
    charts = []
    for key, title in (("state_variance", "variance of the stream"), ("state_gradient", "gradient's norm")):
        values = [
            {"layer": layer, "value": value, "who": who}
            for who, row in seen.items()
            for layer, value in enumerate(row[key])
            if value is not None and value > 0
        ]
        colour = alt.Color(
            "who:N",
            scale=alt.Scale(domain=[name, "pre"] if name != "pre" else ["pre"], range=[IDENTITY, STATE]),
            legend=None,
        )
        charts.append(
            alt.Chart(alt.Data(values=values), title=title, width=250, height=110)
            .mark_line(strokeWidth=2)
            .encode(
                alt.X("layer:Q", title="after layer", axis=alt.Axis(tickCount=5)),
                alt.Y("value:Q", title=None, scale=alt.Scale(type="log"), axis=alt.Axis(tickCount=3, format=".0e")),
                colour,
            )
        )
    specification = (
        alt.hconcat(*charts, background="white").configure_view(stroke=None).configure_axis(grid=False).to_dict()
    )
    return vl_convert.vegalite_to_svg(specification)


def main() -> None:
    """Write what has changed."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        write_whole(FOLDER / name, text)


if __name__ == "__main__":
    main()
