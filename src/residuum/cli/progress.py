"""What a training run or a study shows while it runs: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from residuum.study.run import Progress as StudyProgress
from residuum.train.loop import Progress as Watcher


@contextmanager
def watching(console: Console, name: str = "") -> Iterator[Watcher]:
    """A watcher to hand to `train`; `name` says which model it is, where there are two."""
    prefix = f"{name}  " if name else ""
    if not console.is_terminal:
        yield Lines(console, prefix)
        return
    columns = (
        BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        yield Bar(bar, prefix)


class Lines:
    """One plain line an evaluation, and one every tenth of the run."""

    def __init__(self, console: Console, prefix: str) -> None:
        self._console, self._prefix = console, prefix
        self._shown = -1
        self._first: tuple[float, float] | None = None  # time and step at the first line

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def step(self, line: dict[str, Any], steps: int) -> None:
        tenth = int(10 * line["step"] / steps)
        if "bits_per_byte" in line or tenth != self._shown:
            self._shown = tenth
            now, done = time.perf_counter(), line["step"]
            began, first = self._first = self._first or (now, done)
            left = f"  {(steps - done) * (now - began) / (done - first):.0f} s left" if done > first else ""
            self.note(f"{self._prefix}step {done:>6.0f}/{steps}  {_figures(line)}{left}")


class Bar:
    """A bar whose text is the newest figures; each evaluation leaves a line."""

    def __init__(self, bar: Progress, prefix: str) -> None:
        self._bar, self._prefix = bar, prefix
        self._task = bar.add_task("starting", total=None)

    def note(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def step(self, line: dict[str, Any], steps: int) -> None:
        figures = _figures(line)
        self._bar.update(self._task, total=steps, completed=line["step"], description=self._prefix + figures)
        if "bits_per_byte" in line:
            self.note(f"{self._prefix}step {line['step']:>6.0f}/{steps}  {figures}")


def _figures(line: dict[str, Any]) -> str:
    held_out = f"held out {line['bits_per_byte']:.3f} bits/byte  " if "bits_per_byte" in line else ""
    if "exact_match" in line:
        kinds = ", ".join(f"{kind} {right:.1%}" for kind, right in line.get("exact_match_by_kind", {}).items())
        held_out += f"{line['exact_match']:.1%} answered right{f' ({kinds})' if kinds else ''}  "
    return f"loss {line['loss']:.3f}  {held_out}{line['tokens_per_second']:,.0f} tokens/s"


@contextmanager
def studying(console: Console) -> Iterator[Callable[[StudyProgress], None]]:
    """What to hand to a study: it is told of each finished cell."""
    if not console.is_terminal:
        yield lambda told: console.print(_cells(told), markup=False, highlight=False, soft_wrap=True)
        return
    columns = (BarColumn(20), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda told: bar.update(task, total=told.total, completed=told.done, description=_cells(told))


def _cells(told: StudyProgress) -> str:
    newest = f"  {told.cell.label or told.cell.name}" if told.cell else ""
    left = "" if told.seconds_left is None or told.done == told.total else f"  {_time(told.seconds_left)} left"
    return f"cell {told.done:>{len(str(told.total))}}/{told.total}{newest}{left}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
