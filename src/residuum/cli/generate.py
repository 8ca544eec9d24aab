"""residuum generate RUN --prompt TEXT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import tyro

from residuum.cli.options import parse
from residuum.errors import InputError
from residuum.model import generate
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
    if options.temperature < 0 or options.max_new_tokens < 1 or (options.top_k is not None and options.top_k < 1):
        raise InputError("--temperature must be at least 0, --max-new-tokens and --top-k at least 1")
    folder = RunFolder.open(options.run)
    tokenizer, model = folder.tokenizer, folder.model()
    prompt = [tokenizer.separator, *tokenizer.encode(options.prompt).tolist()]
    generator = torch.Generator().manual_seed(options.seed)
    tokens: list[int] = []
    for token in generate(model, prompt, options.max_new_tokens, options.temperature, options.top_k, generator):
        if token == tokenizer.separator:
            break
        tokens.append(token)
    print(options.prompt + tokenizer.decode(tokens))
    return 0
