"""residuum audit TARGET [--format ...] [--out FILE] [--fail-on SEVERITY]."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from residuum.audit.target import audit_target
from residuum.audit.terminal import print_audit
from residuum.cli.options import parse
from residuum.errors import InputError
from residuum.files import write_whole


@dataclass(frozen=True)
class Options:
    """Find a model's residual connections and judge what flows through them."""

    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """A run folder; package.module:callable that returns a model or (model, inputs); a Hugging Face folder or org/name;
    a .pt2 file of torch.export; with --structure also a config.json or a recipe's .toml file."""
    structure: bool = False
    """Look at the structure alone: nothing needs weights, and a model of any size fits."""
    inputs: str | None = None
    """What to run the model on: a .safetensors, .json or .toml file with the arguments of forward by name, or
    package.module:callable. None: they are made."""
    format: Literal["terminal", "json", "html"] = "terminal"
    """How the audit is written."""
    out: Path | None = None
    """File to write it to. None: to the terminal (json) or audit.html (html)."""
    fail_on: Literal["info", "warning", "error", "never"] = "error"
    """Least severity of a finding that makes the exit status 1."""


def main(args: list[str]) -> int:
    """Audit and report; 1 if a finding reaches --fail-on."""
    options = parse(Options, args, "audit")
    with contextlib.redirect_stdout(sys.stderr):  # what the model prints is not the audit
        audit = audit_target(options.target, options.structure, options.inputs)
    out = options.out or (Path("audit.html") if options.format == "html" else None)
    if options.format == "terminal":
        if out:
            raise InputError("--out goes with --format json or html")
        print_audit(audit, Console())
    else:
        content = audit.to_json() if options.format == "json" else audit.to_html()
        if out is None:
            print(content, end="")
        else:
            write_whole(out, content)
            print(out)
    return 1 if options.fail_on != "never" and audit.at_least(options.fail_on) else 0
