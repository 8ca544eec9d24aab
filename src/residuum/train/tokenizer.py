"""Three ways to cut text into tokens. Every tokenizer has one more token, the separator that ends a document."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers
from numpy.typing import NDArray

from residuum.errors import InputError
from residuum.train.recipe import DataConfig

Tokens = NDArray[np.int32]


class Tokenizer(Protocol):
    """Text to tokens and back. `token_bytes[t]` is how many bytes of text token t stands for, 1 for the separator.

    `bytes_of(t)` is those bytes, perhaps a part of a character; the separator is shown as a line's end.
    """

    vocab_size: int
    separator: int
    token_bytes: NDArray[np.int64]

    def encode(self, text: str) -> Tokens: ...

    def decode(self, tokens: Sequence[int]) -> str: ...

    def bytes_of(self, token: int) -> bytes: ...

    def to_json(self) -> str: ...


class ByteTokenizer:
    """Token t is byte t of the text's UTF-8; the separator is 256."""

    vocab_size = 257
    separator = 256
    token_bytes = np.ones(257, np.int64)

    def encode(self, text: str) -> Tokens:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self.bytes_of, tokens)).decode(errors="replace")

    def bytes_of(self, token: int) -> bytes:
        return bytes([token]) if token != self.separator else b"\n"

    def to_json(self) -> str:
        return json.dumps({"type": "byte"})


class CharTokenizer:
    """Token t is the t-th character of `alphabet`; the separator comes after the last."""

    def __init__(self, alphabet: str) -> None:
        self.alphabet = alphabet
        self.separator = len(alphabet)
        self.vocab_size = len(alphabet) + 1
        self.token_bytes = np.array([*(len(c.encode()) for c in alphabet), 1], np.int64)
        self._index = {c: i for i, c in enumerate(alphabet)}

    def encode(self, text: str) -> Tokens:
        try:
            return np.array([self._index[c] for c in text], np.int32)
        except KeyError as error:
            raise InputError(
                f"the character {error} is not in the text that the char tokenizer was made from"
            ) from None

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join((self.alphabet + "\n")[t] for t in tokens)

    def bytes_of(self, token: int) -> bytes:
        return self.decode([token]).encode()

    def to_json(self) -> str:
        return json.dumps({"type": "char", "alphabet": self.alphabet})


class BPETokenizer:
    """Byte pairs merged by frequency, as in GPT-2; the separator is token 0."""

    separator = 0

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        self._inner.encode_special_tokens = True  # the separator's name, should a text hold it, is text
        self.vocab_size = inner.get_vocab_size()
        byte_of = _byte_level_alphabet()
        spelled = (inner.id_to_token(t) or "" for t in range(1, self.vocab_size))
        self._bytes = [b"\n", *(bytes(byte_of[c] for c in characters) for characters in spelled)]
        self.token_bytes = np.array([len(of_token) for of_token in self._bytes], np.int64)

    @classmethod
    def learn(cls, documents: Iterable[str], vocab_size: int) -> BPETokenizer:
        """Merge the most frequent pairs of `documents` until there are `vocab_size` tokens."""
        inner = tokenizers.Tokenizer(tokenizers.models.BPE())
        inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<|separator|>"],
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator(documents, trainer)
        return cls(inner)

    def encode(self, text: str) -> Tokens:
        return np.array(self._inner.encode(text).ids, np.int32)

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self.bytes_of, tokens)).decode(errors="replace")

    def bytes_of(self, token: int) -> bytes:
        return self._bytes[token]

    def to_json(self) -> str:
        return json.dumps({"type": "bpe", "tokenizer": json.loads(self._inner.to_str())})


def make_tokenizer(config: DataConfig, documents: list[str]) -> Tokenizer:
    """The tokenizer that `config` asks for, learned from `documents` where it is learned."""
    if config.tokenizer == "byte":
        return ByteTokenizer()
    if config.tokenizer == "char":
        return CharTokenizer("".join(sorted(set().union(*documents))))
    # Pair frequencies settle long before the text ends: the first 4 MB are enough and take a second.
    return BPETokenizer.learn(_first_bytes(documents, 4_000_000), config.vocab_size)


def load_tokenizer(path: Path) -> Tokenizer:
    """Raises `InputError` if the file is missing or is no tokenizer."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} is missing: the run folder is not complete") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error
    return tokenizer_from(text, path)


def tokenizer_from(text: str, path: Path) -> Tokenizer:
    """The tokenizer whose `to_json` is `text`. Raises `InputError`, which names the file it stood in, if it is none."""
    try:
        content = json.loads(text)
        if content["type"] == "byte":
            return ByteTokenizer()
        if content["type"] == "char":
            return CharTokenizer(content["alphabet"])
        return BPETokenizer(tokenizers.Tokenizer.from_str(json.dumps(content["tokenizer"])))
    except Exception as error:  # the tokenizers package raises bare Exception
        raise _damaged(path, error) from error


def tokenize(tokenizer: Tokenizer, documents: Iterable[str]) -> Tokens:
    """All documents in one row, each followed by the separator."""
    end = np.array([tokenizer.separator], np.int32)
    parts = [part for document in documents for part in (tokenizer.encode(document), end)]
    return np.concatenate(parts)


def _first_bytes(documents: list[str], most: int) -> Iterable[str]:
    total = 0
    for document in documents:
        total += len(document)
        yield document
        if total > most:
            return


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged ({error}): restore it from a copy of the run")


def _byte_level_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for, as GPT-2 has it.

    Bytes that Latin-1 prints are themselves, the others are characters from 256 on.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(others)}
