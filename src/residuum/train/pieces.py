"""Tokens as text while they come."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence

from residuum.train.tokenizer import Tokenizer


def pieces(tokens: Iterable[int], tokenizer: Tokenizer, stop: Sequence[str] = ()) -> Iterator[str]:
    """What `tokens` say up to one that ends a text or the first text of `stop`, each piece as soon as it is certain.

    Together they are the tokens' bytes as UTF-8, however tokens cut the text: bytes wait for the rest of their
    character, and what may be the beginning of a stop text waits for the rest of that.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    held = ""
    for token in tokens:
        if token in tokenizer.ends:
            break
        held += decoder.decode(tokenizer.bytes_of(token))
        if (cut := _first(stop, held)) is not None:
            yield held[:cut]
            return
        sure = len(held) - _begun(stop, held)
        if sure:
            yield held[:sure]
            held = held[sure:]
    held += decoder.decode(b"", final=True)
    yield held[: _first(stop, held)]


def _first(stop: Sequence[str], text: str) -> int | None:
    """Where the stop text begins that is the first to be complete, the longest of those."""
    found = [(text.index(each) + len(each), text.index(each)) for each in stop if each in text]
    return min(found)[1] if found else None


def _begun(stop: Sequence[str], text: str) -> int:
    """How many characters at the end of `text` may be the beginning of a stop text."""
    return max((n for each in stop for n in range(1, len(each)) if text.endswith(each[:n])), default=0)
