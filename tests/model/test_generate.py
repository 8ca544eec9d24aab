"""Texts that grow, by whatever reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from residuum.model import CachedTransformer, Continuation, Decoder, ModelConfig, Sampling, Transformer, generate


class Adder:
    """Scores so that the next token is the last one plus the number of tokens remembered, and keeps what it was told.

    A decoder of ten numbers that knows nothing of PyTorch.
    """

    def __init__(self, context: int = 6) -> None:
        self.context, self.length = context, 0
        self.told: list[list[int]] = []

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        self.told.append(list(tokens))
        self.length += len(tokens)
        assert self.length <= self.context
        return np.eye(10, dtype=np.float32)[(tokens[-1] + self.length) % 10]

    def forget(self) -> None:
        self.length = 0


def test_greedy_generation_takes_the_best_and_outlives_the_context(tiny: Transformer) -> None:
    tiny.eval()
    prompt = [3, 1, 4]
    written = list(generate(tiny, prompt, 30, Sampling(0)))
    assert len(written) == 30
    window = list(prompt)
    for token in written:  # the argmax of the whole text; past 12 tokens, of its newer half and what follows
        window = window[-6:] if len(window) > 12 else window
        assert token == int(tiny(torch.tensor([window]))[0, -1].argmax())
        window.append(token)
    with pytest.raises(ValueError, match="at least one token"):
        next(generate(tiny, [], 3))


def test_sampling_follows_its_seed(tiny: Transformer) -> None:
    tiny.eval()
    draws = [list(generate(tiny, [1], 20, Sampling(), seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    rng = np.random.default_rng(0)  # which goes on where it was
    assert list(generate(tiny, [1], 20, Sampling(), rng)) == draws[0]
    assert list(generate(tiny, [1], 20, Sampling(), rng)) != draws[0]
    assert list(generate(tiny, [1], 9, Sampling(top_k=1))) == list(generate(tiny, [1], 9, Sampling(0)))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_it_was(training: bool) -> None:
    """And dropout has no part in what is written."""
    model = Transformer(ModelConfig(vocab_size=31, context=12, d_model=12, n_layers=1, n_heads=3, dropout=0.5))
    right = list(generate(model.eval(), [1], 9, Sampling(0)))
    model.train(training)
    assert list(generate(model, [1], 9, Sampling(0))) == right
    assert {module.training for module in model.modules()} == {training}


def test_whatever_reads_is_told_the_same() -> None:
    decoder = Adder()
    assert isinstance(decoder, Decoder)
    assert list(generate(decoder, [5, 1, 2], 8, Sampling(0))) == [5, 9, 4, 0, 3, 7, 2, 8]
    assert decoder.told == [[5, 1, 2], [5], [9], [4], [9, 4, 0], [3], [7], [2]]


def test_what_is_forgotten_is_counted() -> None:
    text = Continuation(Adder(), Sampling(0), np.random.default_rng(0))
    text.append(range(8))
    assert text.forgotten == 0
    next(text)
    assert text.forgotten == 2
    next(text)
    assert text.forgotten == 6


def test_turns_are_appended_to_what_was_read() -> None:
    decoder = Adder()
    text = Continuation(decoder, Sampling(0), np.random.default_rng(0))
    text.append([1, 2])
    assert [next(text), next(text)] == [4, 7]
    text.append([3])
    next(text)
    assert decoder.told == [[1, 2], [4], [7, 3]]  # the last token drawn is read with the turn that follows it
    text.append([6, 6, 6, 6])
    next(text)
    assert decoder.told[-1] == [8, 6, 6, 6, 6]  # all that is new, where that is more than half of the context
    assert Continuation(decoder, Sampling(0), np.random.default_rng(0)).decoder.length == 0


def test_a_cache_reads_in_pieces_what_the_model_reads_at_once(tiny: Transformer) -> None:
    tiny.eval()
    decoder, tokens = CachedTransformer(tiny), list(range(10))
    decoder.read(tokens[:4])
    decoder.read(tokens[4:5])
    scores = decoder.read(tokens[5:])
    assert decoder.length == 10
    np.testing.assert_allclose(scores, tiny(torch.tensor([tokens]))[0, -1].detach().numpy(), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="13 tokens are more than the model's context of 12"):
        decoder.read([1, 2, 3])
    decoder.forget()
    assert decoder.length == 0
