"""The register of claims as Markdown: a table of all, then each with what was asked and what came out."""

from __future__ import annotations

from collections.abc import Sequence

from residuum.study.register import Judged, chosen

FIELDS = ("source", "experiment", "metric", "threshold")


def to_markdown(judged: Sequence[Judged], quick: bool) -> str:
    """Every field of every claim; `quick` says that the experiments were the smaller ones."""
    held = sum(each.said == "holds" for each in judged)
    ids = [each.claim.id for each in judged]
    only = "" if ids == [claim.id for claim in chosen()] else f" --only {','.join(ids)}"
    command = f"residuum study claims{' --quick' if quick else ''}{only}"
    seconds = sum(each.seconds for each in judged)
    took = f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
    seeds = " Most have one seed here: where no interval stands, the bare figure is compared." if quick else ""
    lines = [
        "# What is claimed of residual connections",
        "",
        f"{held} of {len(judged)} claims hold as they are said, in small networks. Thresholds were fixed before "
        f"this run; where pilots or earlier runs shaped an experiment, it says so.{seeds}",
        "",
        f"`{command} --format md` writes this page: {took} of one core.",
        "",
        "| claim | outcome |",
        "|---|---|",
        *(f"| [{_cell(each.claim.statement)}](#{each.claim.id}) | {each.said} |" for each in judged),
    ]
    for each in judged:
        asked = [f"- *{name}*: {getattr(each.claim, name)}" for name in FIELDS]
        found = f"**{each.said}**: {each.sentence}"
        lines += ["", f"## {each.claim.id}", "", f"{each.claim.statement}.", "", *asked, "", found]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
