"""A tokenizer as llama.cpp reads it from a GGUF file: the same tokens for every text, and the same text back."""

from __future__ import annotations

import json
from typing import NamedTuple

from residuum.errors import InputError
from residuum.train.tokenizer import (
    SEPARATOR,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    byte_level_alphabet,
)

NO_TEXT = "ÿ ÿ"
"""A merge that no text asks for: ÿ stands for the byte 255, which UTF-8 has not. llama.cpp wants at least one merge."""

SPACE = "\u2581"
"""What a sentencepiece vocabulary writes for a space."""


class Vocabulary(NamedTuple):
    """The name of llama.cpp's tokenizer, its tokens by number, and what it merges, which "llama" has not."""

    model: str
    tokens: list[str]
    merges: list[str]


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The `Vocabulary` that cuts text as `tokenizer` does. Raises `InputError` where there is none."""
    if isinstance(tokenizer, ByteTokenizer):
        byte_of = byte_level_alphabet()
        return Vocabulary("gpt2", [*sorted(byte_of, key=byte_of.__getitem__), SEPARATOR], [NO_TEXT])
    if isinstance(tokenizer, CharTokenizer):
        return _of_characters(tokenizer.alphabet)
    if not isinstance(tokenizer, BPETokenizer):
        raise InputError(
            "the run's tokenizer came from elsewhere, and GGUF says how text is cut by name: export --to hf"
        )
    learned = json.loads(tokenizer.to_json())["tokenizer"]["model"]
    tokens = sorted(learned["vocab"], key=learned["vocab"].get)
    tokens[tokenizer.separator] = SEPARATOR
    return Vocabulary("gpt2", tokens, [" ".join(pair) for pair in learned["merges"]] or [NO_TEXT])


def _of_characters(alphabet: str) -> Vocabulary:
    """Sentencepiece starts from characters, GPT-2's tokenizer from bytes; with no longer token it ends there too."""
    for character, why in (("\0", "ends a token's text"), (SPACE, "stands for a space")):
        if character in alphabet:
            raise InputError(
                f"the run's char tokenizer has the character U+{ord(character):04X}, which {why} in GGUF: train with "
                "data.tokenizer = 'byte' or 'bpe'"
            )
    return Vocabulary("llama", [*alphabet.replace(" ", SPACE), SEPARATOR], [])
