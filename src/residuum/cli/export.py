"""residuum export RUN --to FORMAT --out PLACE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from residuum.cli.options import parse
from residuum.errors import InputError
from residuum.export import export
from residuum.train import RunFolder


@dataclass(frozen=True)
class Options:
    """Write a trained run's model as the files of another runtime."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    to: Literal["hf", "gguf", "safetensors"]
    """hf: a folder for transformers. gguf: a file for llama.cpp. safetensors: ternary weights, two bits each, in one
    file."""
    out: str
    """Where to write; nothing may be there yet."""
    type: Literal["tq2_0", "tq1_0", "f16"] | None = None
    """How a GGUF file holds the maps. None: tq2_0 for ternary ones, else f16."""
    embedding: Literal["int8", "float"] | None = None
    """How --to safetensors keeps embedding and head. None: int8, which rounds them."""


def main(args: list[str]) -> int:
    """Write the files and say what runs them."""
    options = parse(Options, args, "export")
    if not options.out:
        raise InputError("--out is empty: give the place to write to")
    print(export(RunFolder.open(options.run), options.to, Path(options.out), options.type, options.embedding))
    return 0
