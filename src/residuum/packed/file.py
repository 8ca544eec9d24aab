"""A packed model as one safetensors file, which holds all that it takes to generate: weights, shape and tokenizer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from residuum.errors import InputError
from residuum.files import write_whole
from residuum.model import ModelConfig
from residuum.packed.weights import Packed, check, layout

FORMAT = "residuum.packed/1"
ANEW = "write it anew with residuum export RUN --to safetensors"
UNSIGNED = b"0" * 64
"""What stands in the checksum's place while it is computed: the sha256 is that of the whole file, header included."""


class PackedFile(NamedTuple):
    """What a packed model's file holds."""

    packed: Packed
    tokenizer: str
    """Its JSON."""
    answer: str | None
    """What ends a question, where the run answers questions."""


def save(path: Path, packed: Packed, tokenizer_json: str, answer: str | None = None) -> None:
    """Write `path`, whole or not at all. Raises `InputError` if the disk refuses.

    Tensors are those of `layout`; the header's metadata holds `format`, `config` and `tokenizer` (JSON), `answer` where
    there is one, and `sha256`.
    """
    metadata = {
        "format": FORMAT,
        "config": json.dumps(asdict(packed.config)),
        "tokenizer": tokenizer_json,
        **({} if answer is None else {"answer": answer}),
        "sha256": UNSIGNED.decode(),
    }
    arrays = {name: np.ascontiguousarray(array) for name, array in packed.arrays.items()}
    data = safetensors.numpy.save(arrays, metadata)
    write_whole(path, _with_checksum(data, UNSIGNED, hashlib.sha256(data).hexdigest().encode()))


def load(path: Path) -> PackedFile:
    """The model in `path`, and how to talk with it. Raises `InputError` if it is none, or not as written."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}: give the file of a packed model") from None
    if data.startswith(b"GGUF"):
        raise InputError(f"{path} is for llama.cpp: give the run that it was exported from")
    metadata = _metadata(data)
    if metadata is not None and metadata.get("format") == "pt":
        raise InputError(f"{path} has the weights of a model of transformers: give the run that it was exported from")
    if metadata is None or not str(metadata.get("format")).startswith("residuum.packed/"):
        raise InputError(f"{path} is no packed model, or a damaged one: {ANEW}")
    if metadata["format"] != FORMAT:
        raise InputError(f"{path} is of the format {metadata['format']}, this version reads {FORMAT}: {ANEW}")
    digest = str(metadata.get("sha256"))
    found = hashlib.sha256(_with_checksum(data[: _end_of_header(data)], digest.encode(), UNSIGNED))
    found.update(memoryview(data)[_end_of_header(data) :])
    if found.hexdigest() != digest:
        raise InputError(f"{path} is damaged (its checksum differs): {ANEW}")
    try:
        config = ModelConfig(**json.loads(metadata["config"]))
        check(config)
        arrays: dict[str, NDArray[Any]] = safetensors.numpy.load(data)
        packed = Packed(config, arrays)
        if {name: (array.dtype, array.shape) for name, array in arrays.items()} != layout(config, packed.embedding):
            raise ValueError("its arrays are not those of its shape")
        return PackedFile(packed, metadata["tokenizer"], metadata.get("answer"))
    except (KeyError, TypeError, ValueError, RecursionError, InputError, SafetensorError) as error:
        raise InputError(f"{path} holds no model that this version packs ({error}): {ANEW}") from None


def _with_checksum(data: bytes, old: bytes, new: bytes) -> bytes:
    """Only here can these bytes stand: within a string of the header, a quotation mark is written otherwise."""
    return data.replace(b'"sha256":"' + old, b'"sha256":"' + new, 1)


def _end_of_header(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def _metadata(data: bytes) -> dict[str, Any] | None:
    """What a safetensors header says of the file; None if `data` does not begin with one."""
    try:
        found = json.loads(data[8 : _end_of_header(data)])["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
