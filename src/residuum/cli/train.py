"""residuum train RECIPE [--section.key VALUE ...] | residuum train --resume RUN."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from residuum.audit.run import audit_run, run_lines, write_report
from residuum.audit.terminal import print_audit
from residuum.cli.options import parse
from residuum.cli.progress import watching
from residuum.errors import InputError
from residuum.train import Recipe, RunFolder, load_recipe, train, train_twin
from residuum.train.memory import keep_freed_memory

USAGE = """Train a Transformer from a recipe: quick, gpt, names, bitnet-arithmetic, bitnet, bitnet-95m, bitnet-2b4t, or
the path of a TOML file.

Every value of the recipe can be given on the command line.

--twin trains a ternary recipe's full-precision twin after it, on the same batches, and the report shows both.

residuum train --resume RUN goes on with a run that was stopped, to the same weights bit for bit.
"""


def main(args: list[str]) -> int:
    """Train, then audit the trained model and write the run's report."""
    if args and args[0].split("=")[0] == "--resume":
        given = [*args[0].split("=")[1:], *args[1:]]
        if len(given) != 1:
            raise InputError("--resume takes the folder of a run and nothing else: its recipe says the rest")
        folder = RunFolder.open(given[0])
        recipe = folder.recipe
    else:
        name = args[0] if args and not args[0].startswith("-") else None
        if name is None and not {"-h", "--help"} & set(args):
            raise InputError("which recipe? residuum train quick, or --resume RUN to go on with a run")
        rest = args if name is None else args[1:]
        default = load_recipe("quick" if name is None else name)
        recipe = parse(Recipe, rest, f"train {name or 'RECIPE'}", default, USAGE)
        folder = RunFolder.create(Path(recipe.run.dir) if recipe.run.dir else _free_name(Path(name or "run").stem))
    keep_freed_memory()
    console = Console(soft_wrap=True)
    try:
        with watching(console, "ternary" if recipe.twin else "") as progress:
            train(folder, recipe, progress)
        audit = audit_run(folder)
        write_report(folder, audit)
        if recipe.twin:
            with watching(console, "twin") as progress:
                train_twin(folder, progress)
            write_report(folder.twin, audit_run(folder.twin))
            write_report(folder, audit)  # once more, with both: the first stays if the twin fails
    except KeyboardInterrupt:
        begun = folder.recipe_file.exists()
        mend = f"residuum train --resume {folder.path} goes on" if begun else "nothing was begun"
        console.print(f"stopped; {mend}", markup=False, highlight=False)
        return 130
    print_audit(audit, Console())
    for line in ("", *run_lines(folder), f"report: {folder.report_file}"):
        console.print(line, markup=False, highlight=False)
    return 0


def _free_name(recipe: str) -> Path:
    path, number = Path("runs") / recipe, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{recipe}-{number}"
    return path
