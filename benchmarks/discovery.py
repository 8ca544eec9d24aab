"""What looking costs on GPT-2 small's shape: discovery against a forward, an audit's flow against a training pass."""

from __future__ import annotations

import argparse

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import harness
from residuum import flow, trace


def measure(tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Both ratios for one text of `tokens` tokens, on the same model with random weights."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    text = torch.randint(model.config.vocab_size, (1, tokens))

    def forward() -> None:
        with torch.no_grad():
            model(text, labels=text)

    def forward_and_backward() -> None:
        model(text, labels=text).loss.backward()
        model.zero_grad()

    return {
        "trace / forward": harness.ratio(lambda: trace(model, text, labels=text), forward, rounds),
        "flow / forward and backward": harness.ratio(
            lambda: flow(model, text, labels=text), forward_and_backward, rounds
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    harness.save("discovery", {f"{tokens} tokens": measure(tokens, rounds) for tokens in (64, 1024)})


if __name__ == "__main__":
    main()
