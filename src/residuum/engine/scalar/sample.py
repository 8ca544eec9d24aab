"""Draw a word from a GPT, token by token."""

from __future__ import annotations

from random import Random

from residuum.engine.scalar.collector import collector_paused
from residuum.engine.scalar.gpt import GPT
from residuum.engine.scalar.value import softmax


@collector_paused()
def sample(gpt: GPT, separator: int, temperature: float, random: Random) -> list[int]:
    """Tokens drawn from softmax(scores / temperature), from one `separator` to the next, or until the context is full.

    Temperature 0 takes the best each time.
    """
    tokens = [separator]
    while len(tokens) <= gpt.shape.context:
        scores = [score.data for score in gpt.scores(tokens)[-1]]
        best = max(scores)
        if temperature == 0:
            token = scores.index(best)
        else:
            # The best score is taken off first, so that no temperature is too small to divide by.
            chances = softmax([(score - best) / temperature for score in scores])
            (token,) = random.choices(range(len(chances)), chances)
        if token == separator:
            break
        tokens.append(token)
    return tokens[1:]
