"""The register of claims: run the cells of each through the store, and let it judge their figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from residuum.errors import InputError, meant
from residuum.study.claims import CLAIMS, Claim, Outcome, Undecided
from residuum.study.launch import Launch, locally
from residuum.study.run import Progress, run
from residuum.study.store import Store

SCHEMA = "residuum.study.claims/1"


@dataclass(frozen=True)
class Judged:
    """A claim and its outcome, which is None while cells are `missing`, or where they say nothing and `undecided` why.

    `seconds` is what the finished cells took, but for those that an earlier claim of the register has, too.
    """

    claim: Claim
    outcome: Outcome | None
    missing: int
    seconds: float
    undecided: str | None = None

    @property
    def said(self) -> str:
        """The outcome in a word or two, or that there is none yet."""
        return self.outcome.outcome if self.outcome else "not judged"

    @property
    def sentence(self) -> str:
        if self.undecided:
            return self.undecided
        if self.outcome is None:
            return f"{self.missing} of its cells are not finished: run the other shards, then the same command again"
        return self.outcome.sentence

    def to_dict(self) -> dict[str, Any]:
        claim = self.claim
        return {
            "id": claim.id,
            "statement": claim.statement,
            "source": claim.source,
            "experiment": claim.experiment,
            "metric": claim.metric,
            "threshold": claim.threshold,
            "outcome": self.said,
            "figures": self.outcome.figures if self.outcome else {},
            "sentence": self.sentence,
            "missing_cells": self.missing,
            "seconds": round(self.seconds, 3),
        }


def chosen(only: str | None = None) -> list[Claim]:
    """All claims by id, or those that a list such as `a,b` names. Raises `InputError` for an id that is none."""
    known = {claim.id: claim for claim in sorted(CLAIMS, key=lambda claim: claim.id)}
    wanted = [each.strip() for each in only.split(",")] if only is not None else list(known)
    for each in wanted:
        if each not in known:
            raise InputError(f"--only: no claim '{each}'{meant(each, known)}: residuum study claims --help lists them")
    return [known[each] for each in dict.fromkeys(wanted)]


def judge(
    claims: Sequence[Claim],
    store: Store,
    quick: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    shard: tuple[int, int] = (1, 1),
    launch: Launch = locally,
) -> list[Judged]:
    """Run what is missing of all claims' cells, in one go, and judge each claim by its own."""
    cells = {claim.id: claim.cells(quick) for claim in claims}
    everything = [
        dataclasses.replace(cell, label=cell.label or claim.id) for claim in claims for cell in cells[claim.id]
    ]
    run(everything, store, progress, shard, launch)
    judged, counted = [], set[str]()
    for claim in claims:
        found = [store.result(cell) for cell in cells[claim.id]]
        finished = [result for result in found if result is not None]
        missing, seconds = len(found) - len(finished), 0.0
        for result in finished:
            seconds += result.seconds * (result.cell.key not in counted)
            counted.add(result.cell.key)
        outcome = undecided = None
        try:
            outcome = claim.judge([result.figures for result in finished], quick) if not missing else None
        except Undecided as error:
            undecided = str(error)
        judged.append(Judged(claim, outcome, missing, seconds, undecided))
    return judged
