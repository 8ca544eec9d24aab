"""residuum import FOLDER --run.dir RUN [--section.key VALUE ...]."""
# ruff: noqa: N999 - a verb's file has its name

from __future__ import annotations

from pathlib import Path

from residuum.cli.options import parse
from residuum.errors import InputError
from residuum.export.huggingface.importing import import_run, recipe_of
from residuum.export.huggingface.source import Source
from residuum.train import Recipe

USAGE = """Make a run of a BitNetForCausalLM that transformers wrote: packed ternary weights of either class of its
linear maps, or those that it trains. Its tokenizer comes along, and its shape is the run's: of the model options only
--model.context, up to the folder's, and --model.dropout can be given.

residuum generate and residuum audit then take the run, and residuum train --resume RUN trains it further, on what
--data.source says, with --optim and --run as given here.
"""


def main(args: list[str]) -> int:
    """Write the run folder."""
    given = bool(args) and not args[0].startswith("-")
    if not given and not {"-h", "--help"} & set(args):
        raise InputError("which folder? residuum import FOLDER --run.dir RUN")
    source = Path(args[0]) if given else None
    default = Recipe() if source is None else recipe_of(source)
    recipe = parse(Recipe, args[1:] if given else args, f"import {source or 'FOLDER'}", default, USAGE)
    assert source is not None  # without it parse has printed the help and left
    run = import_run(source, recipe).path
    own_code = "; code of the folder's own (auto_map) was not looked at" if "auto_map" in Source(source).config else ""
    print(
        f"wrote {run}: residuum generate {run} --prompt TEXT, or residuum train --resume {run} to go on training it"
        + own_code
    )
    return 0
