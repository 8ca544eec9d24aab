"""Turns, by a decoder whose every answer is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import tokenizers

from residuum.errors import InputError
from residuum.model import Sampling
from residuum.train.chat import Chat
from residuum.train.tokenizer import ByteTokenizer, CharTokenizer, ImportedTokenizer, Tokenizer

END = ByteTokenizer.separator


def shown(tokenizer: Tokenizer, tokens: Sequence[int], separator: str) -> str:
    return "".join(separator if t == tokenizer.separator else tokenizer.bytes_of(t).decode() for t in tokens)


class Player:
    """Says the line that follows its cue in `script`, where "\\0" is the separator."""

    def __init__(self, tokenizer: Tokenizer, script: dict[str, str], context: int = 99) -> None:
        self.tokenizer, self.script, self.context = tokenizer, script, context
        self.read_so_far: list[int] = []
        self.times_forgotten = 0

    @property
    def length(self) -> int:
        return len(self.read_so_far)

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        self.read_so_far += tokens
        seen = shown(self.tokenizer, self.read_so_far, "\0")
        scores = np.zeros(self.tokenizer.vocab_size, np.float32)
        for cue, line in self.script.items():
            told = cue + line
            for n in range(len(cue), len(told)):
                if seen.endswith(told[:n]):
                    following = told[n]
                    token = self.tokenizer.separator if following == "\0" else int(self.tokenizer.encode(following)[0])
                    scores[token] = 1
                    return scores
        raise AssertionError(f"no cue in {seen!r}")

    def forget(self) -> None:
        self.read_so_far.clear()
        self.times_forgotten += 1


def chat_with(script: dict[str, str], tokenizer: Tokenizer | None = None, most: int = 50, **settings) -> Chat:
    tokenizer = tokenizer or ByteTokenizer()
    return Chat(Player(tokenizer, script), tokenizer, Sampling(0), np.random.default_rng(0), most, **settings)


def said(chat: Chat, line: str) -> str:
    return "".join(chat.turn(line))


def read(chat: Chat) -> str:
    """The whole text, with · for the separator."""
    return shown(chat.tokenizer, chat.text.tokens, "·")


def test_a_question_is_a_document() -> None:
    sums = CharTokenizer("+0123456789=")
    chat = chat_with({"12+7=": "19\0", "1+1=": "2\0"}, sums, mark="=")
    assert [said(chat, line) for line in ("12+7", "1+1=", "12+7")] == ["19", "2", "19"]
    assert read(chat) == "·12+7=19·"
    with pytest.raises(InputError, match="'x' is not in the text"):
        said(chat, "x")


def test_each_turn_is_a_line_of_one_text() -> None:
    chat = chat_with({"hi\n": "hello\0", "again\n": "yes\nso\n\0", "more\n": "on and on and on"}, most=9)
    assert said(chat, "hi") == "hello"
    before = chat.decoder.times_forgotten
    assert said(chat, "again") == "yes\nso\n"
    assert said(chat, "more") == "on and on"
    assert said(chat, "more") == "on and on"
    assert read(chat) == "·hi\nhello·again\nyes\nso\n·more\non and on\nmore\non and on"
    assert chat.decoder.times_forgotten == before  # nothing was read twice
    chat.reset()
    assert said(chat, "hi") == "hello"
    assert read(chat) == "·hi\nhello·"


def test_a_text_of_words_has_no_lines() -> None:
    chat = chat_with({"al": "ice\0", "e": "li\0"}, CharTokenizer("aceil"))
    assert [said(chat, "al"), said(chat, "e")] == ["ice", "li"]
    assert read(chat) == "·alice·eli·"


def test_a_space_that_is_not_decoded_is_no_reason_to_read_again() -> None:
    words = [("<s>", 0.0), *((letter, -2.0) for letter in "▁adehlo\n")]
    inner = tokenizers.Tokenizer(tokenizers.models.Unigram(words, unk_id=0))
    inner.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    inner.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(" ", 1, 0)]
    )
    chat = chat_with({"hal\n": " hello\0", "do\n": " ah\0"}, ImportedTokenizer(inner, len(words), 0, [0]))
    before = chat.decoder.times_forgotten
    assert [said(chat, line) for line in ("hal", "do")] == [" hello", " ah"]
    assert read(chat) == "·hal\n hello·do\n ah·"
    assert chat.decoder.times_forgotten == before


def test_a_stop_text_is_neither_said_nor_read() -> None:
    chat = chat_with({"hi\n": "hello\nUser: no", "bye\n": "bye\0"}, stop=["\nUser:"])
    assert said(chat, "hi") == "hello"
    assert read(chat) == "·hi\nhello"
    assert said(chat, "bye") == "bye"
    assert read(chat) == "·hi\nhello\nbye\nbye·"


def test_an_interrupted_turn_stands_as_far_as_it_was_said() -> None:
    chat = chat_with({"hi\n": "hello and so on", "bye\n": "bye\0"})
    shown = ""
    for piece in chat.turn("hi"):
        shown += piece
        if shown == "hel":
            chat.interrupt()
    assert shown == "hel"
    assert read(chat) == "·hi\nhel"
    assert said(chat, "bye") == "bye"
    assert read(chat) == "·hi\nhel\nbye\nbye·"
