"""Text as it comes: nothing is shown too early, and nothing else than what is decoded at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from residuum.train.pieces import pieces
from residuum.train.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer

BYTES = ByteTokenizer()
BPE = BPETokenizer.learn(["naïve 𝕏 → ∞\n", "the the then", "<|separator|>"], 275)


def test_a_character_is_shown_with_its_last_byte() -> None:
    tokens = list("aé→𝕏".encode())
    shown = [list(pieces(tokens[:n], BYTES)) for n in range(len(tokens) + 1)]
    assert shown[-1] == ["a", "é", "→", "𝕏", ""]
    assert shown[2] == ["a", "�"]  # a text that ends within a character says so, as decoding it does
    assert list(pieces([*tokens, BYTES.separator, 65], BYTES)) == shown[-1]


def test_a_piece_is_shown_before_the_next_token_is_asked_for() -> None:
    asked = []

    def tokens() -> Iterator[int]:
        for token in b"abc":
            asked.append(token)
            yield token

    shown = pieces(tokens(), BYTES)
    assert next(shown) == "a"
    assert asked == [ord("a")]


@given(st.lists(st.integers(0, 255)))
def test_bytes_are_what_is_decoded_at_once(tokens: list[int]) -> None:
    assert "".join(pieces(tokens, BYTES)) == BYTES.decode(tokens)
    assert BYTES.decode(tokens) == bytes(tokens).decode(errors="replace")


@given(st.lists(st.integers(0, BPE.vocab_size - 1)))
def test_bpe_is_what_is_decoded_at_once(tokens: list[int]) -> None:
    said = tokens[: tokens.index(BPE.separator)] if BPE.separator in tokens else tokens
    assert "".join(pieces(tokens, BPE)) == BPE.decode(said) == BPE._inner.decode(said)


def test_the_separator_is_a_lines_end() -> None:
    for tokenizer in (BYTES, BPE, CharTokenizer("ab→")):
        tokens = [tokenizer.separator, *tokenizer.encode("ab"), tokenizer.separator]
        assert b"".join(map(tokenizer.bytes_of, tokens)).decode() == tokenizer.decode(tokens) == "\nab\n"


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one. two.", ["."], "one"),
        ("one, two", ["."], "one, two"),
        (".one", ["."], ""),
        ("a\nUser: b", ["\nUser:", "never"], "a"),
        ("a\nUse", ["\nUser:"], "a\nUse"),  # what was held back is shown once the text is over
        ("aab", ["ab"], "a"),
        ("ababac", ["abac"], "ab"),
        ("abcd", ["abcd", "c"], "ab"),  # the first that is complete, whichever began first
        ("abc", ["bc", "abc", "c"], ""),  # and the longest of those
        ("x→y", ["→"], "x"),
        ("x→y", ["�"], "x→y"),
    ],
)
def test_a_stop_text_ends_it_however_tokens_cut_it(text: str, stop: list[str], shown: str) -> None:
    for tokenizer in (BYTES, BPE, BPETokenizer.learn([text] * 9, 300), CharTokenizer("".join(sorted(set(text))))):
        found = list(pieces(tokenizer.encode(text).tolist(), tokenizer, stop))
        assert "".join(found) == shown


def test_what_a_cut_character_is_shown_as_may_be_a_stop_text() -> None:
    assert "".join(pieces([65, 0xC3], BYTES, ["�"])) == "A"


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_no_part_of_a_stop_text_is_shown(text: str, stop: list[str]) -> None:
    ends = [n for n in range(len(text) + 1) if text[:n].endswith(tuple(stop))]
    right = text
    if ends:
        right = text[: ends[0]].removesuffix(max((s for s in stop if text[: ends[0]].endswith(s)), key=len))
    shown = ""
    for piece in pieces(text.encode(), BYTES, stop):
        shown += piece
        assert right.startswith(shown)
    assert shown == right


def test_nothing_is_asked_for_after_a_stop_text() -> None:
    tokens = iter(b"one. two")
    assert "".join(pieces(tokens, BYTES, ["."])) == "one"
    assert next(tokens) == ord(" ")
