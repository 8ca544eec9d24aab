"""Talk with a run: what is typed and what follows it are one growing text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from residuum.errors import InputError
from residuum.model import Continuation, Decoder, Sampling
from residuum.train.pieces import pieces
from residuum.train.tokenizer import Tokenizer


class Chat:
    """A document that a person and a model write by turns; what has been read once stays in the decoder.

    The model has read what the person sees: each turn is a line of its own, and a document that the model ends with the
    separator is followed by another. Where `mark` ends a question, each turn is a document of its own.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        sampling: Sampling,
        rng: np.random.Generator,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        mark: str | None = None,
    ) -> None:
        self.decoder, self.tokenizer, self.sampling, self.rng = decoder, tokenizer, sampling, rng
        self.max_new_tokens, self.stop, self.mark = max_new_tokens, stop, mark
        self.line_end = "\n" if _knows(tokenizer, "\n") else ""
        self.interrupted = False
        self.reset()

    def reset(self) -> None:
        """Begin a new document."""
        self._begin([self.tokenizer.separator])

    def turn(self, line: str) -> Iterator[str]:
        """What the model says to `line`, piece by piece, until it ends the document, says a stop text or enough.

        Raises `InputError` where the tokenizer lacks a character of `line`.
        """
        self.interrupted = False
        if self.mark is not None:
            asked = self.tokenizer.encode(line if self.mark in line else line + self.mark).tolist()
            self.reset()
        else:
            at_line_start = self.tokenizer.bytes_of(self.text.tokens[-1]).endswith(b"\n")
            before = "" if at_line_start else self.line_end
            asked = self.tokenizer.encode(before + line + self.line_end).tolist()
        self.text.append(asked)
        start, said = len(self.text.tokens), ""
        for piece in pieces(self._drawn(), self.tokenizer, self.stop):
            said += piece
            yield piece
        drawn = (token for token in self.text.tokens[start:] if token not in self.tokenizer.ends)
        # Joined as `pieces` does: some tokenizers decode a text without the space that it begins with.
        if b"".join(map(self.tokenizer.bytes_of, drawn)).decode(errors="replace") != said:
            # A stop text is not said, so it must not be read either.
            self._begin([*self.text.tokens[:start], *self.tokenizer.encode(said).tolist()])

    def interrupt(self) -> None:
        """Let the turn under way end with the next token."""
        self.interrupted = True

    def _drawn(self) -> Iterator[int]:
        for token in islice(self.text, self.max_new_tokens):
            yield token
            if self.interrupted:
                return

    def _begin(self, tokens: Sequence[int]) -> None:
        self.text = Continuation(self.decoder, self.sampling, self.rng)
        self.text.append(tokens)


def _knows(tokenizer: Tokenizer, text: str) -> bool:
    try:
        tokenizer.encode(text)
    except InputError:
        return False
    return True
