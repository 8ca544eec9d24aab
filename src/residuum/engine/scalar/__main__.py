"""Train a tiny GPT on words, letter by letter, then let it make words up: `python -m residuum.engine.scalar FILE`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from random import Random
from typing import NoReturn

from residuum.engine.scalar.adam import AdamW
from residuum.engine.scalar.collector import collector_paused
from residuum.engine.scalar.gpt import GPT, Shape
from residuum.engine.scalar.sample import sample
from residuum.errors import InputError

LEARNING_RATE, TEMPERATURE, SAMPLES, LINES = 0.01, 0.7, 20, 10
SEPARATOR = 0  # the token before and after every word


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}: see --help")


def main(argv: list[str] | None = None) -> int:
    """Train, print the loss on the way, print words. Returns the exit status."""
    parser = _Parser(prog="python -m residuum.engine.scalar", description="A GPT in plain Python, trained on words.")
    parser.add_argument("file", type=Path, metavar="FILE", help="text, one word a line")
    parser.add_argument("--steps", type=int, default=1000, help="steps to train, of one word each (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn (default: 0)")
    try:
        args = parser.parse_args(argv)
        if args.steps < 1:
            raise InputError(f"--steps is {args.steps}: give at least 1")
        _run(_words(args.file), args.steps, args.seed)
    except InputError as error:
        print(f"residuum: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nresiduum: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone; Python must not try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    return 0


def _words(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}: give a text file, one word a line") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start}): give a text file, one word a line") from None
    words = [line.strip() for line in lines if line.strip()]
    if not words:
        raise InputError(f"{file} holds no word: give a text file, one word a line")
    return words


@collector_paused()
def _run(words: list[str], steps: int, seed: int) -> None:
    random = Random(seed)
    random.shuffle(words)
    letters = sorted(set("".join(words)))
    token_of = {letter: token for token, letter in enumerate(letters, start=1)}
    gpt = GPT(Shape(vocab_size=len(letters) + 1, init_std=0.1), seed=seed)
    optimizer = AdamW(gpt.parameters, beta2=0.99)
    print(f"{len(words):,} words of {len(letters)} letters; {len(optimizer.weights):,} weights")
    total, since = 0.0, 0
    for step in range(steps):
        word = words[step % len(words)]
        tokens = [SEPARATOR, *(token_of[letter] for letter in word), SEPARATOR][: gpt.shape.context + 1]
        loss = gpt.loss([tokens[:-1]], [tokens[1:]])
        loss.backward()
        total += loss.data
        optimizer.step(LEARNING_RATE * (1 - step / steps))
        done = step + 1
        if done == steps or done * LINES // steps > step * LINES // steps:
            loss_since = total / (done - since)
            print(f"step {done:>{len(str(steps))}} of {steps}  {loss_since:.3f} nats per letter", flush=True)
            total, since = 0.0, done
    for _ in range(SAMPLES):
        print("".join(letters[token - 1] for token in sample(gpt, SEPARATOR, TEMPERATURE, random)))


if __name__ == "__main__":
    sys.exit(main())
