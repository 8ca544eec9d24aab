"""residuum audit TARGET [--format ...] [--out FILE] [--select CODES] ... | residuum audit --diff A B."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from residuum.audit.audit import Audit
from residuum.audit.baseline import listed, read_baseline, to_baseline, without_known
from residuum.audit.diff import Diff, compare, print_diff
from residuum.audit.recorded import read_audit
from residuum.audit.selection import chosen_rules
from residuum.audit.settings import FailOn, find_settings
from residuum.audit.target import audit_target
from residuum.audit.terminal import print_audit
from residuum.cli.options import parse
from residuum.cli.output import check_writable, put
from residuum.errors import InputError
from residuum.files import write_whole


@dataclass(frozen=True)
class Options:
    """Find a model's residual connections and judge what flows through them.


    What the command line leaves open, [tool.residuum] in the nearest pyproject.toml may say.
    """

    target: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")] = None
    """A run folder; package.module:callable that returns a model or (model, inputs); a Hugging Face folder or org/name;
    a .pt2 file of torch.export; with --structure also a config.json or a recipe's .toml file."""
    structure: bool = False
    """Look at the structure alone: nothing needs weights, and a model of any size fits."""
    inputs: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """What to run the model on: a .safetensors, .json or .toml file with the arguments of forward by name, or
    package.module:callable. None: they are made."""
    diff: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="A B", help_behavior_hint="")] = ()
    """Instead of a TARGET: compare two audits that --format json wrote."""
    format: Literal["terminal", "md", "html", "json", "sarif"] = "terminal"
    """How the audit is written."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File to write it to. None: to the terminal, or audit.html (html)."""
    select: Annotated[str | None, tyro.conf.arg(metavar="CODES")] = None
    """Rules to ask, as codes or their beginnings: RS2,RS301. None: all."""
    ignore: Annotated[str | None, tyro.conf.arg(metavar="CODES")] = None
    """Rules not to ask, likewise; the longer code wins."""
    fail_on: Annotated[FailOn | None, tyro.conf.arg(metavar="{info,warning,error,never}")] = None
    """Least severity of a finding that makes the exit status 1. None: error."""
    baseline: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Findings that this file lists are known: counted, but no failure."""
    write_baseline: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write such a file with every finding of this audit; none of them is a failure then."""


def main(args: list[str]) -> int:
    """Audit or compare, and report; 1 if a finding (of a comparison: a new one) reaches --fail-on."""
    options = parse(Options, args, "audit")
    if options.format == "terminal" and options.out:
        raise InputError("--out goes with --format md, html, json or sarif")
    if options.diff:
        return _compare(options)
    if options.target is None:
        raise InputError("audit what? residuum audit TARGET, or --diff A B to compare two audits")
    settings = find_settings(options.target)
    select = settings.select if options.select is None else _codes(options.select)
    ignore = settings.ignore if options.ignore is None else _codes(options.ignore)
    chosen_rules(select, ignore)  # a mistake is said before the model is built
    if options.baseline and options.write_baseline:
        raise InputError("--baseline reads known findings, --write-baseline writes all there are: give one of them")
    path = options.baseline or settings.baseline
    known = None if path is None or options.write_baseline else read_baseline(path)
    if options.write_baseline and options.write_baseline.is_file():
        read_baseline(options.write_baseline)  # another file is not written over
    out = options.out or (Path("audit.html") if options.format == "html" else None)
    for file in (out, options.write_baseline):
        check_writable(file)
    with _apart():
        audit = audit_target(options.target, options.structure, options.inputs, select, ignore)
    new = to_baseline(audit) if options.write_baseline else ""
    known = listed(audit) if new else known
    if known is not None:
        audit = without_known(audit, known)
    written: dict[str, Callable[[Audit], str]] = {
        "md": Audit.to_markdown,
        "html": Audit.to_html,
        "json": Audit.to_json,
        "sarif": Audit.to_sarif,
    }
    if options.format == "terminal":
        print_audit(audit, Console())
    else:
        put(written[options.format](audit), out)
    if options.write_baseline:
        write_whole(options.write_baseline, new)
        print(f"baseline: {options.write_baseline}", file=sys.stderr)
    fail_on = options.fail_on or settings.fail_on
    return 1 if fail_on != "never" and audit.at_least(fail_on) else 0


def _compare(options: Options) -> int:
    if len(options.diff) != 2:
        raise InputError("--diff takes two files, A and B, that --format json wrote")
    given = (options.target, options.inputs, options.select, options.ignore, options.baseline, options.write_baseline)
    if options.structure or any(value is not None for value in given):
        raise InputError("--diff compares two audits as they are: it takes --format, --out and --fail-on alone")
    written: dict[str, Callable[[Diff], str]] = {"md": Diff.to_markdown, "json": Diff.to_json}
    if options.format not in ("terminal", *written):
        raise InputError(f"--diff cannot be written as {options.format}: choose terminal, md or json")
    diff = compare(*map(read_audit, options.diff))
    if options.format == "terminal":
        print_diff(diff, Console())
    else:
        put(written[options.format](diff), options.out)
    fail_on = options.fail_on or find_settings().fail_on
    return 1 if fail_on != "never" and diff.at_least(fail_on) else 0


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """What the model prints is not the audit: it goes to the standard error, whichever way it takes."""
    sys.stdout.flush()
    output = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(output, 1)
        os.close(output)


def _codes(given: str) -> tuple[str, ...]:
    return tuple(code.strip() for code in given.split(","))
