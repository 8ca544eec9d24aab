"""Continue a text, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from residuum.model.sample import Sampling
from residuum.model.transformer import Transformer


@runtime_checkable
class Decoder(Protocol):
    """Reads a text piece by piece, and remembers `length` tokens of it, at most `context`."""

    @property
    def context(self) -> int: ...

    @property
    def length(self) -> int: ...

    def read(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The scores, one for each of the vocabulary, of the token after these, which follow those read before."""
        ...

    def forget(self) -> None:
        """The next tokens begin a text."""
        ...


class CachedTransformer:
    """A Transformer and the keys and values of what it has read."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.context = model.config.context
        self._cache = model.new_cache(batch=1)

    @property
    def length(self) -> int:
        return self._cache[0].length

    @torch.inference_mode()
    def read(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """In evaluation mode, whichever the model is in. Raises `ValueError` for more tokens than the context."""
        was_training = self.model.training
        if was_training:
            self.model.eval()
        try:
            new = torch.tensor([list(tokens)], device=self.model.embedding.weight.device)
            scores: NDArray[np.float32] = self.model(new, cache=self._cache)[0, -1].float().cpu().numpy()
        finally:
            if was_training:
                self.model.train()
        return scores

    def forget(self) -> None:
        for layer in self._cache:
            layer.length = 0


class Continuation:
    """A text that grows by what is appended, and with each `next` by a token that follows.

    Where the text passes the decoder's context, its newer half is read again and the older half forgotten: `forgotten`
    counts the tokens that the decoder does not see.
    """

    def __init__(self, decoder: Decoder, sampling: Sampling, rng: np.random.Generator) -> None:
        decoder.forget()
        self.decoder, self.sampling, self.rng = decoder, sampling, rng
        self.forgotten = 0
        self.tokens: list[int] = []
        self._unread = 0

    def append(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens
        self._unread += len(tokens)

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if not self._unread:
            raise ValueError("a prompt has at least one token")
        token = self.sampling.draw(self._read(), self.rng)
        self.append([token])
        return token

    def _read(self) -> NDArray[np.float32]:
        context = self.decoder.context
        if self.decoder.length + self._unread > context:
            self.decoder.forget()
            self._unread = min(max(context // 2, self._unread), context)
            self.forgotten = len(self.tokens) - self._unread
        scores = self.decoder.read(self.tokens[-self._unread :])
        self._unread = 0
        return scores


def generate(
    decoder: Decoder | Transformer,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 - it is frozen
    rng: np.random.Generator | int | None = None,
) -> Iterator[int]:
    """`max_new_tokens` tokens that follow `prompt` (at least one token), each as soon as it is drawn.

    `rng` is a seed, or what goes on drawing: one seed gives one text, whatever computes the scores. Past the model's
    context, the newer half of it is read again and the older half forgotten.
    """
    reader = CachedTransformer(decoder) if isinstance(decoder, Transformer) else decoder
    text = Continuation(reader, sampling, np.random.default_rng(rng))
    text.append(prompt)
    return islice(text, max_new_tokens)
