"""Checkpoints: safetensors for the numbers, JSON for the rest, a checksum over each, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from residuum.errors import InputError
from residuum.files import TEMPORARY, whole_folder

SCHEMA = "residuum.checkpoint/1"
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole.

    It was written after `step` steps, when each log had `log_bytes`, with files of the run that had these sha256.
    """

    path: Path
    step: int
    log_bytes: dict[str, int]
    made_from: dict[str, str]


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    log_bytes: dict[str, int],
    made_from: dict[str, str],
    keep: int,
) -> Path:
    """Write `folder/step_<step>/` and remove all but the newest `keep`. Raises `InputError` if the disk refuses."""
    path = folder / step_name(step)
    with whole_folder(path) as part:
        try:
            save_file(_weights(model), part / MODEL)
            save_file(_moments(model, optimizer), part / OPTIMIZER)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        state = {
            "schema": SCHEMA,
            "step": step,
            "log_bytes": log_bytes,
            "made_from": made_from,
            "sha256": {name: sha256_of(part / name) for name in (MODEL, OPTIMIZER)},
        }
        state["checksum"] = _checksum(state)
        (part / STATE).write_text(json.dumps(state, indent=2) + "\n")
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def step_name(step: int) -> str:
    """What the checkpoint after `step` steps is called."""
    return f"step_{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Oldest first. One that was being written when the run was killed has no final name and is not among them."""
    return sorted(path for path in folder.glob("step_" + 8 * "[0-9]") if path.is_dir())


def newest_checkpoint(folder: Path, restart: str | None = None) -> Checkpoint | None:
    """The newest checkpoint, verified byte for byte; None if there is none. Raises `InputError` if it is damaged.

    `restart` is what to do where there is no older one; None deletes it, to go on from the start.
    """
    found = list_checkpoints(folder)
    return verify_checkpoint(found[-1], restart) if found else None


def verify_checkpoint(path: Path, restart: str | None = None) -> Checkpoint:
    """Raises `InputError` naming the file if one is missing or holds another byte than was written."""
    before = [other for other in list_checkpoints(path.parent) if other < path]
    mend = f"delete {path} to go on from {before[-1].name if before else 'the start'}"
    if restart is not None and not before:
        mend = restart
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        whole = state["schema"] == SCHEMA and state.pop("checksum") == _checksum(state)
    except FileNotFoundError:
        raise InputError(f"{path / STATE} is missing: {mend}") from None
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(f"{path / STATE} is damaged: {mend}")
    for name, digest in state["sha256"].items():
        if not (path / name).is_file():
            raise InputError(f"{path / name} is missing: {mend}")
        if sha256_of(path / name) != digest:
            raise InputError(f"{path / name} is damaged (its checksum differs): {mend}")
    return Checkpoint(path, state["step"], state["log_bytes"], state["made_from"])


def load_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Copy the weights into `model`. Raises `InputError` where they are of another shape."""
    saved = load_file(checkpoint.path / MODEL)
    parameters = dict(model.named_parameters())
    _same_keys(saved, set(parameters), checkpoint.path / MODEL)
    with torch.no_grad():
        for name, value in saved.items():
            if value.shape != parameters[name].shape:
                raise InputError(
                    f"{checkpoint.path / MODEL}: {name} has shape {tuple(value.shape)}, but the recipe's model has "
                    f"{tuple(parameters[name].shape)}: restore the run's own recipe.toml"
                )
            parameters[name].copy_(value)


def load_moments(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put AdamW's two moments and its step counter back."""
    saved = load_file(checkpoint.path / OPTIMIZER)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        state: dict[str, Tensor] = {}
        for moment in ("step", "exp_avg", "exp_avg_sq"):
            key = f"{name}.{moment}"
            if key not in saved:
                raise InputError(f"{checkpoint.path / OPTIMIZER}: no {key}: restore the run's own recipe.toml")
            # The counter stays where AdamW itself keeps it.
            state[moment] = (
                saved[key] if moment == "step" and not _fused(optimizer) else saved[key].to(parameter.device)
            )
        optimizer.state[parameter] = state


def discard_parts(folder: Path) -> None:
    """Remove what a killed run was still writing."""
    for part in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Each parameter once: a tied head is the embedding's, under the embedding's name."""
    return {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.defaults.get("fused"))


def _same_keys(saved: dict[str, Tensor], wanted: set[str], path: Path) -> None:
    missing, extra = wanted - set(saved), set(saved) - wanted
    if missing or extra:
        name, verb = (min(missing), "lacks") if missing else (min(extra), "has a foreign")
        raise InputError(f"{path} {verb} {name}: restore the run's own recipe.toml")


def sha256_of(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
