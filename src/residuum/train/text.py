"""Where the text comes from, and which of its documents are held out."""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from residuum.errors import InputError
from residuum.train.arithmetic import arithmetic
from residuum.train.recipe import DataConfig


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out; `fingerprint` changes if any of them does."""

    train: list[str]
    held_out: list[str]
    fingerprint: str
    skipped: int

    @property
    def n_bytes(self) -> int:
        return sum(len(document.encode()) for document in [*self.train, *self.held_out])


def read_corpus(config: DataConfig) -> Corpus:
    """Read `config.source` and split it by document.

    A document is held out if the hash of its name falls in the lowest `config.held_out`, so the split does not depend
    on what else is there. Of `config.max_bytes` that share is for held-out documents. Raises `InputError` where there
    is no text, or too little to split.
    """
    documents, skipped = _documents(config)
    if not any(text for _, text in documents):
        raise InputError(f"data.source = '{config.source}' holds no text: give a file or folder of UTF-8 text")
    documents.sort(key=lambda document: _hash(document[0]))
    if config.max_bytes is not None:
        documents = _share(documents, config.max_bytes, config.held_out)
    whole = hashlib.sha256()
    for name, text in documents:
        whole.update(f"{len(name)} {len(text)} {name}{text}".encode(errors="surrogateescape"))
    held = [text for name, text in documents if _hash(name) < config.held_out]
    train = [text for name, text in documents if _hash(name) >= config.held_out]
    if not train or not held:
        side = "held_out takes all of them" if held else "none is held out"
        raise InputError(
            f"data.source = '{config.source}' cannot be split: of {len(documents)} documents {side}; give more text, "
            f"{'a smaller' if held else 'a larger'} data.held_out, or smaller documents (data.documents = 'line')"
        )
    return Corpus(train, held, whole.hexdigest(), skipped)


def _documents(config: DataConfig) -> tuple[list[tuple[str, str]], int]:
    if config.source == "stdlib":
        return _files(Path(sysconfig.get_path("stdlib")), ".py")
    if config.source == "stdlib-names":
        return [(name, name) for name in _names_of_stdlib()], 0
    if config.source == "arithmetic":
        return arithmetic(), 0
    path = Path(os.path.expanduser(config.source))  # noqa: PTH111 - Path.expanduser raises for a user who is not there
    if path.is_dir():
        return _files(path, "")
    if path.exists() and not path.is_file():
        raise InputError(f"data.source = '{config.source}' is no regular file: give stdlib, a file or a folder")
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"data.source = '{config.source}' does not exist: give stdlib, a file or a folder") from None
    except UnicodeDecodeError as error:
        raise InputError(f"data.source = '{config.source}' is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"data.source = '{config.source}' cannot be read: {error.strerror}") from None
    if config.documents == "file":
        return [(path.name, text)], 0
    parts = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    if config.documents == "line" or (config.documents == "auto" and len(parts) < 20):
        parts = [line for line in text.splitlines() if line.strip()]
    # Equal parts carry equal names: a line that occurs twice is on one side of the split.
    return [(part, part) for part in parts], 0


def _files(folder: Path, suffix: str) -> tuple[list[tuple[str, str]], int]:
    documents, skipped = [], 0
    for path in sorted(_walk(folder, suffix)):
        if not path.is_file():
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            skipped += 1
            continue
        if text:
            documents.append((path.relative_to(folder).as_posix(), text))
    return documents, skipped


def _walk(folder: Path, suffix: str) -> Iterator[Path]:
    """Not even looks into site-packages, which may hold many times what is wanted, or what is hidden."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "site-packages" and not name.startswith(".")]
        yield from (Path(place, name) for name in names if name.endswith(suffix) and not name.startswith("."))


def _names_of_stdlib() -> list[str]:
    """Every lower-case name of 3 to 12 letters that the standard library defines or calls: a small text of words."""
    documents, _ = _files(Path(sysconfig.get_path("stdlib")), ".py")
    definition = re.compile(r"(?:\bdef |\bclass |\.|^[ \t]*)([a-z]{3,12})(?= *[=(:])", re.MULTILINE)
    found = {name for _, text in documents for name in definition.findall(text)}
    return sorted(found)


def _share(documents: list[tuple[str, str]], most: int, held_out: float) -> list[tuple[str, str]]:
    """The first documents of either side, each up to its share of `most` bytes."""
    kept = []
    for which, held, share in (("held out", True, held_out), ("to train on", False, 1 - held_out)):
        side = [document for document in documents if (_hash(document[0]) < held_out) is held]
        first = _first_bytes(side, round(most * share))
        if side and not first:
            least = min(len(text.encode()) for _, text in side)
            raise InputError(
                f"data.max_bytes = {most} leaves {round(most * share)} for documents {which}, and the smallest has "
                f"{least}: give more, or smaller documents (data.documents = 'line')"
            )
        kept += first
    return kept


def _first_bytes(documents: list[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    kept, total = [], 0
    for name, text in documents:
        size = len(text.encode())
        if total + size <= most:
            kept.append((name, text))
            total += size
    return kept


def _hash(name: str) -> float:
    """A number from 0 up to 1 that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:7]) / 2**56
