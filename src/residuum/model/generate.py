"""Continue a text, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from residuum.model.transformer import Transformer


@torch.inference_mode()
def generate(
    model: Transformer,
    prompt: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` tokens that follow `prompt` (at least one token).

    The next token is drawn from softmax(scores / temperature), among the `top_k` best if given; temperature 0 takes the
    best. Keys and values are cached; past the model's context, the newer half of it is read again and the older half
    forgotten.
    """
    if not prompt:
        raise ValueError("a prompt has at least one token")
    context = model.config.context
    device = model.embedding.weight.device
    seen = list(prompt)[-context:]
    cache = model.new_cache(batch=1)
    new = seen
    for _ in range(max_new_tokens):
        if cache[0].length + len(new) > context:
            cache = model.new_cache(batch=1)
            new = seen[-max(context // 2, 1) :]
        scores = model(torch.tensor([new], device=device), cache=cache)[0, -1].float()
        token = _draw(scores, temperature, top_k, generator)
        yield token
        seen.append(token)
        new = [token]


def _draw(scores: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> int:
    if temperature == 0:
        return int(scores.argmax())
    if top_k is not None:
        scores = scores.masked_fill(scores < scores.topk(min(top_k, len(scores))).values[-1], float("-inf"))
    # Drawn on the CPU, so that one seed gives one text whatever device the model runs on.
    # The best score is subtracted first, so that no temperature is too small to divide by.
    chances = torch.softmax((scores - scores.max()) / temperature, dim=-1).cpu()
    return int(torch.multinomial(chances, 1, generator=generator))
