"""Ways to cut text into tokens. Every tokenizer has one more token, the separator that ends a document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers
from numpy.typing import NDArray

from residuum.errors import InputError
from residuum.train.recipe import DataConfig

Tokens = NDArray[np.int32]

SEPARATOR = "<|separator|>"
"""What the separator is called in files. A text that holds these characters does not hold the separator."""


class Tokenizer(Protocol):
    """Text to tokens and back. `token_bytes[t]` is how many bytes of text token t stands for, 1 for the separator.

    `bytes_of(t)` is those bytes, perhaps a part of a character; the separator is shown as a line's end.
    The separator also begins a text that is to be continued, and the model ends it with any of `ends`.
    """

    vocab_size: int
    separator: int
    ends: frozenset[int]
    token_bytes: NDArray[np.int64]

    def encode(self, text: str) -> Tokens: ...

    def decode(self, tokens: Sequence[int]) -> str: ...

    def bytes_of(self, token: int) -> bytes: ...

    def to_json(self) -> str: ...


class ByteTokenizer:
    """Token t is byte t of the text's UTF-8; the separator is 256."""

    vocab_size = 257
    separator = 256
    ends = frozenset((256,))
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
        self.ends = frozenset((self.separator,))
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
    ends = frozenset((0,))

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        self._inner.encode_special_tokens = True  # the separator's name, should a text hold it, is text
        self.vocab_size = inner.get_vocab_size()
        byte_of = byte_level_alphabet()
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
            special_tokens=[SEPARATOR],
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


class ImportedTokenizer:
    """What a tokenizer.json of somebody else's says, for a model of `vocab_size` tokens, perhaps more than it has.

    `separator` is the token that its texts begin with. A text is cut without the marks that the file would add, and
    the name of one, should a text hold it, is text. A token's bytes are those that it adds to a text as decoded: what
    the tokenizer drops of a text (capitals, say) is not counted.
    """

    def __init__(self, inner: tokenizers.Tokenizer, vocab_size: int, separator: int, ends: Iterable[int]) -> None:
        self._inner = inner
        inner.encode_special_tokens = True
        inner.no_padding()
        inner.no_truncation()
        self.vocab_size, self.separator, self.ends = vocab_size, separator, frozenset(ends)
        self._bytes = _bytes_as_decoded(inner, vocab_size)
        for token in {separator, *self.ends}:
            self._bytes[token] = b"\n"
        self.token_bytes = np.array([len(of_token) for of_token in self._bytes], np.int64)

    def encode(self, text: str) -> Tokens:
        try:
            return np.array(self._inner.encode(text, add_special_tokens=False).ids, np.int32)
        except Exception as error:  # the tokenizers package raises bare Exception
            raise InputError(f"the tokenizer that the model was imported with cannot cut the text: {error}") from None

    def decode(self, tokens: Sequence[int]) -> str:
        return "\n".join(self._inner.decode(part) for part in _split_at(tokens, self.ends | {self.separator}))

    def bytes_of(self, token: int) -> bytes:
        return self._bytes[token]

    def to_json(self) -> str:
        return json.dumps(
            {
                "type": "imported",
                "vocab_size": self.vocab_size,
                "separator": self.separator,
                "ends": sorted(self.ends),
                "tokenizer": json.loads(self._inner.to_str()),
            }
        )


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
        inner = tokenizers.Tokenizer.from_str(json.dumps(content["tokenizer"]))
        if content["type"] == "imported":
            return ImportedTokenizer(inner, content["vocab_size"], content["separator"], content["ends"])
        return BPETokenizer(inner)
    except Exception as error:  # the tokenizers package raises bare Exception
        raise _damaged(path, error) from error


def tokenize(tokenizer: Tokenizer, documents: Iterable[str]) -> Tokens:
    """All documents in one row, each followed by the separator."""
    end = np.array([tokenizer.separator], np.int32)
    parts = [part for document in documents for part in (tokenizer.encode(document), end)]
    return np.concatenate(parts)


def byte_level_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for, as GPT-2 has it.

    Bytes that Latin-1 prints are themselves, the others are characters from 256 on.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _first_bytes(documents: list[str], most: int) -> Iterable[str]:
    total = 0
    for document in documents:
        total += len(document)
        yield document
        if total > most:
            return


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged ({error}): restore it from a copy of the run")


def _bytes_as_decoded(inner: tokenizers.Tokenizer, vocab_size: int) -> list[bytes]:
    """Of each token the bytes that it adds to a text; none where there is no such token."""
    written = json.loads(inner.to_str())
    byte_level = (written["decoder"] or {}).get("type") == "ByteLevel"
    added = {token["id"]: token["content"] for token in written["added_tokens"]}
    byte_of = byte_level_alphabet()

    def bytes_of(token: int) -> bytes:
        name = inner.id_to_token(token) or ""
        if token in added:
            return name.encode()
        if byte_level:
            return b"".join(bytes([byte_of[c]]) if c in byte_of else c.encode() for c in name)
        if re.fullmatch("<0x[0-9A-F]{2}>", name):
            return bytes.fromhex(name[3:5])  # which alone may be no text
        once, twice = (inner.decode([token] * n, skip_special_tokens=False).encode() for n in (1, 2))
        return twice[len(once) :]  # the first of a text may lose the space before it

    return [bytes_of(token) for token in range(vocab_size)]


def _split_at(tokens: Sequence[int], ends: frozenset[int]) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in tokens:
        if token in ends:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts
