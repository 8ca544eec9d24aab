"""A folder that transformers wrote, read as data: no code of its own, no pickle, nothing outside it."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from residuum.errors import InputError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def shown(value: Any) -> str:
    """A value of a JSON file, as it stands there, on one line and not endless."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + "…"


class Source:
    """The folder `path`. Raises `InputError`, here and in what follows, where something is missing or damaged."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise InputError(f"{path} is no folder: give one that holds a BitNetForCausalLM")
        self.path = path

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.table(CONFIG)

    def read(self, name: str) -> bytes:
        """What a small file holds."""
        file = self.path / name
        if not file.exists():
            raise InputError(f"{self.path} holds no {name}: write it there with save_pretrained")
        if not file.is_file():  # a pipe would be waited for
            raise InputError(f"{file} is no regular file: write it anew with save_pretrained")
        try:
            return file.read_bytes()
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror or error}") from None

    def table(self, name: str) -> dict[str, Any]:
        """The table in a JSON file."""
        file = self.path / name
        try:
            content = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} cannot be read: {error}: write it anew with save_pretrained") from None
        if not isinstance(content, dict):
            raise InputError(f"{file} holds no table of settings: write it anew with save_pretrained")
        return content

    @cached_property
    def weights(self) -> dict[str, Path]:
        """The name of every weight, and the file that holds it."""
        found: dict[str, Path] = {}
        for shard in self._shards():
            file = self.path / shard
            if not re.fullmatch(r"[\w.-]+\.safetensors", shard) or not file.is_file():
                raise InputError(f"{self.path} lacks {shard}, which {INDEX} names: copy it there")
            try:
                with safe_open(file, "pt") as opened:
                    found.update(dict.fromkeys(opened.keys(), file))
            except SafetensorError as error:
                raise InputError(f"{file} is damaged ({error}): copy it anew") from error
            except OSError as error:
                raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
        return found

    def _shards(self) -> list[str]:
        if (self.path / WEIGHTS).is_file():  # transformers, too, asks for it first
            return [WEIGHTS]
        if (self.path / INDEX).is_file():
            listed = self.table(INDEX).get("weight_map")
            if not isinstance(listed, dict) or not all(isinstance(shard, str) for shard in listed.values()):
                raise InputError(f"{self.path / INDEX} has no weight_map: write it anew with save_pretrained")
            return sorted(set(listed.values()))
        if any(next(self.path.glob(f"*.{kind}"), None) for kind in ("bin", "pt", "pth")):
            raise InputError(
                f"{self.path} holds its weights in a pickle, which can run code as it is read: where you trust it, "
                "load it and write it again as safetensors with model.save_pretrained"
            )
        raise InputError(f"{self.path} holds no {WEIGHTS}: write it there with model.save_pretrained")

    def shape(self, name: str) -> tuple[str, tuple[int, ...]]:
        """A weight's type, as safetensors calls it, and its shape."""
        with safe_open(self.weights[name], "pt") as file:
            view = file.get_slice(name)
            return view.get_dtype(), tuple(view.get_shape())

    def tensor(self, name: str) -> Tensor:
        """A weight's numbers."""
        with safe_open(self.weights[name], "pt") as file:
            return file.get_tensor(name)
