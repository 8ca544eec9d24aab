"""residuum study claims [--quick] [--only ID,ID] [--store DIR] [--format ...] ..."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from residuum.cli.options import parse
from residuum.cli.output import check_writable, put
from residuum.cli.progress import studying
from residuum.errors import InputError
from residuum.study.launch import LAUNCHERS
from residuum.study.register import SCHEMA, Judged, chosen, judge
from residuum.study.run import Progress, read_shard
from residuum.study.store import Store

USAGE = """usage: residuum study claims [OPTIONS]

  claims      what people say of residual connections, each tested by an experiment

Finished cells of a study are kept and never run again: a study that was killed goes on where it was.
residuum study claims --help explains the options.
"""


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every study takes."""

    quick: bool = False
    """A smaller experiment of the same kind."""
    store: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("studies")
    """Folder of the finished cells; machines that share the work share this folder."""
    shard: Annotated[str, tyro.conf.arg(metavar="I/N")] = "1/1"
    """Run only the I-th of N parts of the cells, each of which costs about the same."""
    launch: Literal["local", "ray", "slurm"] = "local"
    """Where cells run: in this process, or as jobs of Ray (extra ray) or Slurm (extra slurm)."""
    format: Literal["terminal", "md", "json"] = "terminal"
    """How the result is written."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File to write it to (md, json). None: to the terminal."""

    def how(self, progress: Callable[[Progress], None]) -> dict[str, Any]:
        """What every study's function takes, too."""
        return {
            "store": Store(self.store),
            "quick": self.quick,
            "progress": progress,
            "shard": read_shard(self.shard),
            "launch": LAUNCHERS[self.launch],
        }

    @contextmanager
    def told(self) -> Iterator[dict[str, Any]]:
        """The same, while progress is shown on the standard error. Raises `InputError` before anything is run."""
        if self.format == "terminal" and self.out:
            raise InputError("--out goes with --format md or json")
        check_writable(self.out)
        read_shard(self.shard)
        with studying(Console(stderr=True, soft_wrap=True)) as progress:
            yield self.how(progress)


@dataclass(frozen=True, kw_only=True)
class Claims(Common):
    """Test what people say of residual connections."""

    only: Annotated[str | None, tyro.conf.arg(metavar="ID,ID")] = None
    """Claims to test, by id. None: all."""


def main(args: list[str]) -> int:
    """Run a study and print what it found. What it found is no failure: the status is 0."""
    if args and args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    studies = {"claims": _claims}
    if not args or args[0] not in studies:
        said = f"no study '{args[0]}'" if args else "which study?"
        raise InputError(f"{said} choose {', '.join(studies)}: see residuum study --help")
    studies[args[0]](args[1:])
    return 0


def _claims(args: list[str]) -> None:
    options = parse(Claims, args, "study claims")
    claims = chosen(options.only)
    with options.told() as how:
        judged = judge(claims, **how)
    if options.format == "json":
        content = {"schema": SCHEMA, "quick": options.quick, "claims": [each.to_dict() for each in judged]}
        put(json.dumps(content, indent=2, allow_nan=False) + "\n", options.out)
    elif options.format == "md":
        put(_claims_in_markdown(judged), options.out)
    else:
        _print_claims(judged, Console())


def _claims_in_markdown(judged: list[Judged]) -> str:
    lines = ["| claim | outcome | figures |", "|---|---|---|"]
    for each in judged:
        cells = (f"**{each.claim.id}**: {each.claim.statement} ({each.claim.source})", each.said, each.sentence)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


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
