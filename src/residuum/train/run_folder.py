"""A run is a folder: recipe.toml, tokenizer.json, metrics.jsonl, samples.txt, checkpoints/ and report.html."""

from __future__ import annotations

import json
import os
import platform
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w
import torch
from filelock import FileLock, Timeout

from residuum.engine.trial import try_out
from residuum.errors import InputError
from residuum.files import TEMPORARY, cannot_write, write_whole
from residuum.model import Transformer
from residuum.model.residual import residual_named
from residuum.model.residual.own import source_of
from residuum.train.checkpoint import Checkpoint, load_weights, newest_checkpoint, sha256_of
from residuum.train.recipe import Recipe, as_dict, load_recipe
from residuum.train.tokenizer import Tokenizer, load_tokenizer


def code_of(residual: str) -> str | None:
    """The checksum of the file of somebody's own connection, which its name does not tell; None of ours."""
    source = source_of(residual_named(residual))
    return None if source is None else sha256_of(source)


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and what can be read from them."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run. Raises `InputError` if `path` is none."""
        if not isinstance(path, (str, Path)) or not str(path):
            raise InputError(f"{path!r} is no folder: give the folder of a run")
        folder = cls(Path(path))
        if not folder.path.is_dir():
            raise InputError(f"{path} is no folder: give the folder of a run")
        if not folder.recipe_file.is_file() and (folder.path / "config.json").is_file():
            raise InputError(
                f"{path} is no run folder, but perhaps a model of transformers: give the run that it is of, or "
                "make one of a BitNetForCausalLM with residuum import"
            )
        if not folder.recipe_file.is_file():
            raise InputError(f"{path} is no run folder: it holds no recipe.toml")
        return folder

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new run, of which nothing is on the disk yet. Raises `InputError` if `path` already holds something."""
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file: choose another --run.dir")
        if (path / "recipe.toml").exists():
            raise InputError(f"{path} already holds a run: go on with --resume {path}, or choose another --run.dir")
        folder = cls(path)
        # A run that was killed before its recipe was written is no run yet; what it left is its tokenizer at most.
        left = {p for p in path.iterdir() if not p.name.startswith(TEMPORARY)} if path.is_dir() else set()
        if left - {folder.tokenizer_file, folder.lock_file}:
            raise InputError(f"{path} is not empty: choose another --run.dir")
        folder.tokenizer_file.unlink(missing_ok=True)
        return folder

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def tokenizer_file(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples_file(self) -> Path:
        return self.path / "samples.txt"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def lock_file(self) -> Path:
        return self.path / ".lock"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def twin(self) -> RunFolder:
        """The run of the full-precision twin, which need not be there."""
        return RunFolder(self.path / "twin")

    @cached_property
    def recipe(self) -> Recipe:
        return load_recipe(str(self.recipe_file))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer_file)

    def write_recipe(self, recipe: Recipe, fingerprint: str, imported: Path | None = None) -> None:
        """The recipe as it was run, with what made it: enough to repeat the run, or to see why it cannot be.

        `imported` is where its first weights came from, if not from the seed.
        """
        made_with = {
            "residuum": version("residuum"),
            "torch": version("torch"),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "data_fingerprint": fingerprint,
        }
        if (code := code_of(recipe.model.residual)) is not None:
            made_with["connection"] = code
        if imported is not None:
            made_with["imported"] = os.fsencode(imported).decode(errors="replace")  # a name need not be UTF-8
        content = as_dict(recipe)
        content["run"].pop("dir", None)  # where it happened to be is not what it takes to repeat it
        write_whole(self.recipe_file, tomli_w.dumps({**content, "made_with": made_with}))

    def made_with(self) -> dict[str, str]:
        """What recipe.toml says of versions, data, the code of a connection of one's own and imported weights."""
        try:
            found = tomllib.loads(self.recipe_file.read_text(encoding="utf-8-sig")).get("made_with")
        except (OSError, ValueError) as error:
            raise InputError(f"{self.recipe_file} cannot be read ({error}): restore the run's own file") from error
        return found if isinstance(found, dict) else {}

    @property
    def anew(self) -> str:
        """The command for another run that begins as this one did: an imported one's recipe would do so at random."""
        imported = self.made_with().get("imported")
        verb = f"train {self.recipe_file}" if imported is None else f"import {imported}"
        return f"residuum {verb} --run.dir ANOTHER"

    def changed_code(self) -> str | None:
        """A sentence where the run's residual connection is somebody's own and its file is not what it was then."""
        residual, before = self.recipe.model.residual, self.made_with().get("connection")
        if before is None or code_of(residual) == before:
            return None
        return f"the code of model.residual = '{residual}' has changed since {self.path} began"

    def made_from(self) -> dict[str, str]:
        """The checksums of the files without which a checkpoint's weights mean nothing."""
        return {path.name: sha256_of(path) for path in (self.recipe_file, self.tokenizer_file)}

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint; None where the start is the seed's and there is none yet.

        Raises `InputError` if it is damaged, recipe or tokenizer are not its own, or an imported run has none.
        """
        again = f"import the model again with {self.anew}" if "imported" in self.made_with() else None
        checkpoint = newest_checkpoint(self.checkpoints, again)
        if checkpoint is None and again is not None:
            raise InputError(f"{self.path} began with imported weights and has no checkpoint left: {again}")
        if checkpoint is not None:
            for name, digest in self.made_from().items():
                if checkpoint.made_from.get(name) != digest:
                    raise InputError(
                        f"{self.path / name} is not the one that {checkpoint.path.name} was trained with: restore "
                        f"it, or start a new run with {self.anew}"
                    )
        return checkpoint

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder. Raises `InputError` if one does."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.lock_file)
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"{self.path} is being trained by another process: wait, or choose another folder"
            ) from None
        except OSError as error:
            raise cannot_write(self.path, error) from error
        try:
            yield
        finally:
            lock.release()
            self.lock_file.unlink(missing_ok=True)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, oldest first."""
        if not self.metrics_file.exists():
            return []
        try:
            return [json.loads(line) for line in self.metrics_file.read_text().splitlines()]
        except ValueError:
            raise InputError(f"{self.metrics_file} is damaged: delete it; the run goes on without its past") from None

    def n_parameters(self) -> int:
        """How many numbers the model learns."""
        with torch.device("meta"):
            return sum(p.numel() for p in Transformer(self.recipe.model).parameters())

    def model(self) -> Transformer:
        """The trained model, in evaluation mode, from the newest checkpoint."""
        checkpoint = self.newest_checkpoint()
        if checkpoint is None:
            raise InputError(f"{self.path} has no checkpoint yet: go on with residuum train --resume {self.path}")
        if self.changed_code() is not None:
            try_out(self.recipe.model, "autograd")  # it was sound when the run began
        model = Transformer(self.recipe.model)
        load_weights(checkpoint, model)
        return model.eval()


class Log:
    """A file that only grows, and that a resumed run cuts back to where its checkpoint was; `lost` if it is shorter."""

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        try:
            self._file = path.open("ab")
            self.lost = path.stat().st_size < length
            self._file.truncate(min(length, path.stat().st_size))
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise cannot_write(path, error) from error

    def append(self, text: str) -> None:
        start = self.length
        try:
            self._file.write(text.encode())
            self._file.flush()
        except OSError as error:
            os.truncate(self.path, start)
            raise cannot_write(self.path, error) from error

    @property
    def length(self) -> int:
        return self._file.tell()

    def settle(self) -> None:
        """Have the disk hold it before a checkpoint says how long it is."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def load(path: str | Path) -> Transformer:
    """The trained model of the run folder `path`, in evaluation mode.

    Raises `InputError` if it is no run, has no checkpoint, or its newest checkpoint is damaged.
    """
    return RunFolder.open(path).model()
