"""residuum study depth|claims|compare ... [--quick] [--store DIR] [--shard I/N] [--format ...] [--out FILE] ..."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from residuum.cli.options import parse
from residuum.cli.output import check_folder, check_writable, put
from residuum.cli.progress import studying
from residuum.errors import InputError
from residuum.study import register_report
from residuum.study.compare import compare
from residuum.study.depth import Grid, depth, full_grid, quick_grid
from residuum.study.depth_report import COLUMNS, cells_of, facts, to_json, to_markdown, write_reports
from residuum.study.launch import launcher
from residuum.study.register import SCHEMA, Judged, chosen, judge
from residuum.study.run import read_shard
from residuum.study.store import Store

USAGE = """usage: residuum study depth|claims|compare [OPTIONS]

  depth       which residual connection trains at which depth, with warm-up and without
  claims      what people say of residual connections, each tested by an experiment
  compare     two connections or two recipes, seed by seed

Finished cells of a study are kept and never run again: a study that was killed goes on where it was.
residuum study depth --help explains the options of depth, and so on.
"""


DEPTH_FLAGS = {
    "data.source": "--source", "model.d_model": "--d-model", "model.n_layers": "--depths",
    "model.residual": "--connections", "optim.lr": "--lr", "optim.min_lr": "--lr", "run.steps": "--steps",
}  # fmt: skip
"""By which flag of a study the field of its recipes was given."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every study takes."""

    store: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("studies")
    """Folder of the finished cells; machines that share the work share this folder."""
    shard: Annotated[str, tyro.conf.arg(metavar="I/N")] = "1/1"
    """Run only the I-th of N parts of the cells, each of which costs about the same."""
    launch: Literal["local", "ray", "slurm"] = "local"
    """Where cells run: on this machine, or as jobs of Ray (extra ray) or Slurm (extra slurm)."""
    workers: int | None = None
    """Processes that share local work, one thread each. None: as many as there are cores."""
    format: Literal["terminal", "md", "json"] = "terminal"
    """How the result is written."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File to write it to (md, json). None: to the terminal."""

    @contextmanager
    def how(self) -> Iterator[dict[str, Any]]:
        """What every study's function takes too; progress is shown on the standard error.

        Raises `InputError` before anything is run.
        """
        if self.format == "terminal" and self.out:
            raise InputError("--out goes with --format md or json")
        check_writable(self.out)
        store = Store(self.store)
        check_folder(self.store)
        shared = {
            "store": store,
            "shard": read_shard(self.shard),
            "launch": launcher(self.launch, self.workers),
        }
        with studying(Console(stderr=True, soft_wrap=True)) as progress:
            yield {**shared, "progress": progress}


@dataclass(frozen=True, kw_only=True)
class DepthOptions(Common):
    """Which residual connection trains at which depth, with warm-up and without.


    Also writes depth.html and depth.json into the store's folder.
    """

    quick: bool = False
    """Only pre, post and none, and only a few minutes' worth of steps."""
    connections: Annotated[str | None, tyro.conf.arg(metavar="A,B")] = None
    """Residual connections, by name. None: all there are; with --quick pre, post and none."""
    depths: Annotated[str | None, tyro.conf.arg(metavar="N,N")] = None
    """Numbers of layers. None: 2, 8 and 24."""
    seeds: int = 3
    """Seeds of every row, at least 3."""
    steps: int | None = None
    """Steps of training. None: 1000, with --quick 300."""
    d_model: int = 32
    """Width of the stream."""
    lr: float = 1e-3
    """Peak learning rate."""
    source: str = "stdlib"
    """Text: stdlib, a file or a folder."""


@dataclass(frozen=True, kw_only=True)
class ClaimsOptions(Common):
    """Test what people say of residual connections."""

    quick: bool = False
    """Smaller experiments of the same kind."""
    only: Annotated[str | None, tyro.conf.arg(metavar="ID,ID")] = None
    """Claims to test, by id. None: all."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Common):
    """Train two models with the same seeds, text and steps, and take their difference seed by seed."""

    models: Annotated[tuple[str, str], tyro.conf.Positional, tyro.conf.arg(metavar="A B", help_behavior_hint="")]
    """Two residual connections by name, or two recipes: a built-in one's name or a TOML file."""
    quick: bool = False
    """300 steps, where --steps says nothing else."""
    n_layers: int | None = None
    """Layers of both. None: a recipe's own; 8 for connections."""
    steps: int | None = None
    """Steps of both. None: a recipe's own; 1000 for connections."""
    seeds: int = 3
    """Seeds of each, at least 3."""


def main(args: list[str]) -> int:
    """Run a study and print what it found. What it found is no failure: the status is 0."""
    if args and args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    studies = {"depth": _depth, "claims": _claims, "compare": _compare}
    if not args or args[0] not in studies:
        said = f"no study '{args[0]}':" if args else "which study?"
        raise InputError(f"{said} choose {', '.join(studies)}; see residuum study --help")
    try:
        studies[args[0]](args[1:])
    except KeyboardInterrupt:
        print("\nresiduum: finished cells are kept: the same command goes on", file=sys.stderr)
        raise
    return 0


def _depth(args: list[str]) -> None:
    options = parse(DepthOptions, args, "study depth")
    with options.how() as how, _in_flags(DEPTH_FLAGS):
        study = depth(_grid(options), **how)
        page = write_reports(study, how["store"])
    if options.format == "json":
        put(to_json(study), options.out)
    elif options.format == "md":
        put(to_markdown(study), options.out)
    else:
        console = _console()
        console.print(study.headline, style="bold", markup=False)
        for fact in facts(study):
            console.print(textwrap.indent(textwrap.fill(fact, console.width - 2), "  "), markup=False)
        _print_table(COLUMNS, [cells_of(row) for row in study.rows], left=(0, 2, 6))
        console.print(f"report: {page}", markup=False, soft_wrap=True)


def _grid(options: DepthOptions) -> Grid:
    base = quick_grid() if options.quick else full_grid()
    given: dict[str, Any] = {
        "seeds": options.seeds,
        "d_model": options.d_model,
        "lr": options.lr,
        "source": options.source,
    }
    if options.connections is not None:
        given["connections"] = tuple(name.strip() for name in options.connections.split(","))
    if options.depths is not None:
        given["depths"] = _numbers("--depths", options.depths)
    if options.steps is not None:
        given["steps"] = options.steps
    return dataclasses.replace(base, **given)


@contextmanager
def _in_flags(flags: dict[str, str]) -> Iterator[None]:
    """What is wrong with a field of a recipe is said of the flag that it came from, unless a file holds it."""
    try:
        yield
    except InputError as error:
        said = str(error)
        for field, flag in flags.items():
            said = said if said.startswith("recipe ") else said.replace(field, flag)
        raise InputError(said) from error


def _numbers(flag: str, given: str) -> tuple[int, ...]:
    try:
        return tuple(int(each) for each in given.split(","))
    except ValueError:
        raise InputError(f"{flag} is '{given}': give whole numbers with commas between, such as 2,8,24") from None


def _compare(args: list[str]) -> None:
    options = parse(CompareOptions, args, "study compare")
    steps = 300 if options.quick and options.steps is None else options.steps
    given = {"model.n_layers": ("--n-layers", options.n_layers), "run.steps": ("--steps", options.steps)}
    flags = {field: flag for field, (flag, value) in given.items() if value is not None}
    with options.how() as how, _in_flags(flags):
        found = compare(*options.models, n_layers=options.n_layers, steps=steps, seeds=options.seeds, **how)
    if options.format == "json":
        put(found.to_json(), options.out)
    elif options.format == "md":
        put(found.to_markdown(), options.out)
    else:
        _print_table(("seed", found.a, found.b, f"{found.a} − {found.b}"), found.rows(), left=(0,))
        console = _console()
        console.print(found.verdict, style="bold", markup=False)
        if found.time:
            console.print(found.time, markup=False)


def _console() -> Console:
    """As wide as a terminal is, and at most 100 columns: sentences are wrapped."""
    found = Console(highlight=False)
    found.width = min(found.width, 100) if found.is_terminal else 100
    return found


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: tuple[int, ...]) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number in left else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=100, soft_wrap=True, highlight=False).print(table)


def _claims(args: list[str]) -> None:
    ids = ", ".join(claim.id for claim in chosen())
    text = textwrap.fill(f"Test what people say of residual connections: {ids}.", 90, break_on_hyphens=False)
    options = parse(ClaimsOptions, args, "study claims", text=text)
    claims = chosen(options.only)
    with options.how() as how:
        judged = judge(claims, quick=options.quick, **how)
    if options.format == "json":
        content = {"schema": SCHEMA, "quick": options.quick, "claims": [each.to_dict() for each in judged]}
        put(json.dumps(content, indent=2, allow_nan=False) + "\n", options.out)
    elif options.format == "md":
        put(register_report.to_markdown(judged, options.quick), options.out)
    else:
        _print_claims(judged, Console())


def _print_claims(judged: list[Judged], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 1, 0), width=min(console.width, 100))
    table.add_column("claim", ratio=5)
    table.add_column("outcome", width=len("does not hold"))
    table.add_column("what was measured", ratio=5)
    for each in judged:
        table.add_row(f"{each.claim.id}\n{each.claim.statement}", each.said, each.sentence)
    console.print(table)
    held = sum(each.said == "holds" for each in judged)
    console.print(f"{held} of {len(judged)} claims hold", highlight=False)
