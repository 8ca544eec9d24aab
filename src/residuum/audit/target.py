"""What `residuum audit TARGET` may name, told apart by its look."""

from __future__ import annotations

import contextlib
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from residuum.audit.audit import Audit, judge
from residuum.audit.finding import Evidence
from residuum.audit.run import audit_run
from residuum.audit.targets import exported, huggingface
from residuum.audit.targets.built import Built
from residuum.audit.targets.given import given_inputs
from residuum.audit.targets.imported import from_callable
from residuum.audit.targets.structure import Arguments, Traced, on_meta, structure_of_config
from residuum.errors import InputError
from residuum.model import Transformer
from residuum.stream import TraceError, flow, trace
from residuum.stream.untouched import same_chance
from residuum.train.recipe import load_recipe
from residuum.train.run_folder import RunFolder

FORMS = (
    "name a run folder, package.module:callable, a Hugging Face folder or org/name, a .pt2 file of torch.export, "
    "or with --structure a config.json or a recipe's .toml file"
)
HUB = re.compile(r"[\w.-]+/[\w.-]+")


def audit_target(
    target: str,
    structure: bool = False,
    inputs: str | None = None,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> Audit:
    """Audit what `target` names: its structure alone if so wanted, on the inputs that `inputs` names if given.

    What is drawn at random is the same each time. Raises `InputError` if it names nothing that can be audited.
    """
    path = Path(target)
    if target and (path / "recipe.toml").is_file() and not structure:
        if inputs is not None:
            raise InputError("--inputs: a run is audited on its own held-out text: leave it away")
        return audit_run(RunFolder.open(target), select, ignore)
    with _importable_from_here(), _seeded():
        given = given_inputs(inputs) if inputs is not None else None
        if structure:
            with _naming(inputs):
                traced = _structure(target, path, given)
            seen = Evidence(traced.graph, model_source=traced.source)
            return judge(seen, target, select, ignore, traced.notes)
        built = _build(target, path).on(given)
        with _naming(inputs):
            measured, notes = built.run(flow)
        seen = Evidence(measured.graph, measured, model_source=built.source)
        return judge(seen, target, select, ignore, notes)


def _build(target: str, path: Path) -> Built:
    if not target:
        raise InputError(f"'' is no target: {FORMS}")
    if ":" in target and not path.exists():
        return from_callable(target)
    if path.suffix == ".pt2" and path.is_file():
        return exported.from_file(path)
    if path.suffix == ".toml" and path.is_file():
        raise InputError(f"{target} is a recipe, which has no weights: give --structure, or the folder of a run")
    if path.exists() and huggingface.is_config(path):
        return huggingface.from_folder(path)
    if path.is_dir():
        raise InputError(f"{target} is no run folder: it holds no recipe.toml, and no config.json either: {FORMS}")
    if HUB.fullmatch(target) and not path.exists():
        return huggingface.from_hub(target)
    raise InputError(f"'{target}' names nothing that can be audited: {FORMS}")


def _structure(target: str, path: Path, inputs: Arguments | None) -> Traced:
    recipe = path / "recipe.toml" if path.is_dir() else path
    if target and recipe.suffix == ".toml" and recipe.is_file():
        shape = load_recipe(str(recipe)).model
        return on_meta(lambda: Built(Transformer(shape)), inputs)
    if target and path.exists() and huggingface.is_config(path):
        return structure_of_config(*huggingface.read_config(str(path), local=True), inputs)
    if HUB.fullmatch(target) and not path.exists():
        return structure_of_config(*huggingface.read_config(target, local=False), inputs)
    if path.suffix == ".pt2" and path.is_file():  # its graph is bound to its own tensors
        built = exported.from_file(path).on(inputs)
        graph, notes = built.run(trace)
        return Traced(graph, built.source, notes)
    came: list[nn.Module] = []

    def build() -> Built:
        built = _build(target, path)
        came.append(built.model)
        return built

    try:
        return on_meta(build, inputs)
    except (TraceError, InputError):
        config = getattr(came[0], "config", None) if came else None
        if not hasattr(config, "model_type"):
            raise
        return structure_of_config(config, type(came[0]), inputs)


@contextlib.contextmanager
def _naming(inputs: str | None) -> Iterator[None]:
    """What a model has against given inputs is said with their name."""
    try:
        yield
    except TraceError as error:
        if inputs is None:
            raise
        raise TraceError(f"--inputs {inputs}: {error}") from error


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Two audits of one model agree, though it draws its weights, or drops parts of its state."""
    with same_chance(range(torch.cuda.device_count())):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        yield


@contextlib.contextmanager
def _importable_from_here() -> Iterator[None]:
    """As `python -m` does, so that a project's own modules are found."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:  # the target's own code may have changed it
            sys.path.remove(here)
