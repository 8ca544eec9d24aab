"""residuum generate RUN --prompt TEXT."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from residuum.cli.options import parse
from residuum.errors import InputError
from residuum.model import Sampling, generate
from residuum.train import RunFolder


@dataclass(frozen=True)
class Options:
    """Continue a text with a trained run."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    prompt: str = ""
    """Text to continue. Empty: start a new document."""
    max_new_tokens: int = 200
    """Most tokens to write; the model may end the document sooner."""
    temperature: float = 0.8
    """Below 1 likelier tokens are preferred, 0 takes the likeliest."""
    top_k: int | None = None
    """Choose among this many likeliest tokens. None: all."""
    seed: int = 0
    """Seed of the choices."""


def main(args: list[str]) -> int:
    """Write the prompt and its continuation."""
    options = parse(Options, args, "generate")
    if not 0 <= options.temperature < math.inf:
        raise InputError(f"--temperature is {options.temperature}: give a finite number of at least 0")
    for flag, value in (("--max-new-tokens", options.max_new_tokens), ("--top-k", options.top_k)):
        if value is not None and value < 1:
            raise InputError(f"{flag} is {value}: give at least 1")
    if not 0 <= options.seed < 2**63:
        raise InputError(f"--seed is {options.seed}: give a whole number from 0 to 2⁶³ − 1")
    if any("\ud800" <= c <= "\udfff" for c in options.prompt):
        raise InputError("--prompt is not UTF-8 text")
    folder = RunFolder.open(options.run)
    tokenizer, model = folder.tokenizer, folder.model()
    if changed := folder.changed_code():
        print(f"residuum: {changed}: its weights were trained with another", file=sys.stderr)
    prompt = [tokenizer.separator, *tokenizer.encode(options.prompt).tolist()]
    tokens: list[int] = []
    for token in generate(
        model, prompt, options.max_new_tokens, Sampling(options.temperature, options.top_k), options.seed
    ):
        if token == tokenizer.separator:
            break
        tokens.append(token)
    print(options.prompt + tokenizer.decode(tokens))
    return 0
