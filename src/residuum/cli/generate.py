"""residuum generate RUN --prompt TEXT."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from residuum.cli.decoding import Decoding, check_text, note, note_passed, open_reader
from residuum.cli.options import parse
from residuum.model import Continuation
from residuum.packed import PackedDecoder, difference
from residuum.train.pieces import pieces


@dataclass(frozen=True)
class Options(Decoding):
    """Continue a text with a trained run."""

    prompt: str = ""
    """Text to continue. Empty: start a new document."""
    temperature: float = 0.8
    """Below 1 likelier tokens are preferred, 0 takes the likeliest."""


def main(args: list[str]) -> int:
    """Write the prompt and its continuation as it comes, and to standard error how fast it came."""
    options = parse(Options, args, "generate")
    sampling = options.sampling(options.temperature)
    check_text(options.prompt, "--prompt")
    reader = open_reader(options)
    decoder, tokenizer = reader.decoder, reader.tokenizer
    prompt = [tokenizer.separator, *tokenizer.encode(options.prompt).tolist()]
    lost = len(prompt) - decoder.context
    if lost > 0:
        note(f"the model reads the last {decoder.context:,} of the prompt's {len(prompt):,} tokens, its context")
    if isinstance(decoder, PackedDecoder) and reader.model is not None:
        note(f"packed scores of the prompt {difference(reader.model, decoder, prompt[-decoder.context :])}")
    text = Continuation(decoder, sampling, np.random.default_rng(options.seed))
    text.append(prompt)
    pace = Pace()
    print(options.prompt, end="", flush=True)
    for piece in pieces(pace.of(islice(text, options.max_new_tokens)), tokenizer, options.stop):
        print(piece, end="", flush=True)
    print()
    if text.forgotten > max(lost, 0):
        note_passed(decoder.context)
    note(pace.said(min(len(prompt), decoder.context)))
    return 0


class Pace:
    """When tokens came: the first once the prompt had been read, each other once the one before it had."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def of(self, tokens: Iterable[int]) -> Iterator[int]:
        self.times.append(time.perf_counter())
        for token in tokens:
            self.times.append(time.perf_counter())
            yield token

    def said(self, prompt: int) -> str:
        """Both speeds, where there was something to measure: the last token is drawn and not read."""
        start, first, *later = self.times
        said = (
            f"prompt of {prompt:,} tokens read at {prompt / (first - start):,.1f} tokens/s; {1 + len(later):,} written"
        )
        return said + (f" at {len(later) / (later[-1] - first):,.1f} tokens/s" if later else "")
