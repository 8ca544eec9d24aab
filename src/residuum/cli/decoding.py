"""What generate and chat are told alike: the run, and how its next token is chosen."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from residuum.cores import cores
from residuum.errors import InputError
from residuum.model import CachedTransformer, Decoder, Sampling, Transformer
from residuum.packed import PackedDecoder, load, pack
from residuum.train import RunFolder
from residuum.train.tokenizer import Tokenizer, tokenizer_from


@dataclass(frozen=True)
class Decoding:
    """Which model writes, and how."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run, or the file of a packed model."""
    max_new_tokens: int = 200
    """Most tokens to write; the model may end the document sooner."""
    top_k: int | None = None
    """Choose among this many likeliest tokens. None: all."""
    top_p: float | None = None
    """Choose among the likeliest tokens whose chances together reach this, as few as do. None: all."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="TEXT")] = ()
    """End before this text; may be given several times."""
    seed: int = 0
    """Seed of the choices."""
    packed: bool = False
    """Read a ternary run by its packed weights, two bits each, on all cores. Takes the extra packed."""
    embedding: Literal["int8", "float"] | None = None
    """How --packed keeps embedding and head. None: int8."""
    threads: int | None = None
    """Threads of a packed model. None: one for each core."""

    @property
    def file(self) -> Path | None:
        """The packed model's, where RUN is one."""
        path = Path(self.run)
        return path if path.is_file() or (path.suffix == ".safetensors" and not path.is_dir()) else None

    def sampling(self, temperature: float) -> Sampling:
        """How to choose a token. Raises `InputError` for an option that cannot be."""
        if not 1 <= self.max_new_tokens < 2**31:
            raise InputError(f"--max-new-tokens is {self.max_new_tokens}: give a whole number from 1 to 2³¹ − 1")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed is {self.seed}: give a whole number from 0 to 2⁶³ − 1")
        if self.threads is not None and not 1 <= self.threads <= cores():  # others would only be waited for
            raise InputError(f"--threads is {self.threads:,}: give 1 to {cores()}, the cores there are")
        if self.threads is not None and not (self.packed or self.file):
            raise InputError("--threads goes with --packed, or with the file of a packed model")
        if self.embedding is not None and (self.file or not self.packed):
            raise InputError("--embedding goes with --packed: a file was packed with the one it has")
        if "" in self.stop:
            raise InputError("--stop is empty: give a text, or leave it away")
        for text in self.stop:
            check_text(text, "--stop")
        try:
            return Sampling(temperature, self.top_k, self.top_p)
        except InputError as error:
            raise InputError(f"--{str(error).replace('_', '-', 1)}") from None


@dataclass(frozen=True)
class Reader:
    """A trained model that reads, and what it takes to talk with it."""

    decoder: Decoder
    tokenizer: Tokenizer
    mark: str | None
    """What ends a question, where the run answers questions."""
    model: Transformer | None = None
    """The run's own, unless it was packed elsewhere."""


def open_reader(options: Decoding) -> Reader:
    """Raises `InputError` where RUN is neither a run nor a packed model, or cannot be packed."""
    if options.file is not None:
        packed, text, answer = load(options.file)
        tokenizer = tokenizer_from(text, options.file)
        if tokenizer.vocab_size != packed.config.vocab_size:
            raise InputError(
                f"{options.file}: its tokenizer has {tokenizer.vocab_size:,} tokens, its model "
                f"{packed.config.vocab_size:,}: export the run again"
            )
        return Reader(PackedDecoder(packed, options.threads), tokenizer, answer)
    folder = RunFolder.open(options.run)
    model = folder.model()
    if changed := folder.changed_code():
        note(f"{changed}: its weights were trained with another")
    decoder: Decoder = CachedTransformer(model)
    if options.packed:
        decoder = PackedDecoder(pack(model, options.embedding or "int8"), options.threads)
    return Reader(decoder, folder.tokenizer, folder.recipe.data.answer, model)


def check_text(text: str, where: str) -> None:
    """Raises `InputError` for what was no UTF-8 when it was typed."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise InputError(f"{where} is not UTF-8 text")


def note(text: str) -> None:
    """A line beside the answer."""
    print(f"residuum: {text}", file=sys.stderr)


def note_passed(context: int) -> None:
    """Say that a text is longer than what the model sees of it."""
    note(f"the text has passed the model's context of {context:,} tokens: it reads the newer half and forgets the rest")
