"""Small models and their text."""

from __future__ import annotations

import math

import torch

from residuum.model import ModelConfig, Transformer
from residuum.study.small import VOCAB, fit, loss_of, text_of


def test_both_texts_are_split_and_known_by_their_bytes() -> None:
    code, names = text_of("stdlib"), text_of("stdlib-names")
    for text in (code, names):
        assert len(text.train) > len(text.held_out) > 1000
        assert 2 < text.unigram < 4  # between a letter of 26 and a byte of 256
    assert set(names.held_out.tolist()) <= {*range(ord("a"), ord("z") + 1), 256}
    assert code.fingerprint != names.fingerprint
    x, y = code.held_out_batch(16, 3)
    assert x.shape == y.shape == (3, 16) and torch.equal(x[:, 1:], y[:, :-1])


def test_fit_learns_what_may_learn_and_repeats_itself() -> None:
    text = text_of("stdlib-names")

    def trained() -> Transformer:
        torch.manual_seed(0)
        model = Transformer(ModelConfig(vocab_size=VOCAB, context=16, d_model=16, n_layers=1, n_heads=2))
        model.blocks[0].attn.q.weight.requires_grad_(False)
        fit(model, text.train, 30, seed=1)
        return model

    one, two = trained(), trained()
    torch.manual_seed(0)
    start = Transformer(one.config)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(one.blocks[0].attn.q.weight, start.blocks[0].attn.q.weight)
    batch = text.held_out_batch(16, 8)
    assert loss_of(one, batch) < loss_of(start, batch) - 1
    with torch.no_grad():
        one.embedding.weight.fill_(math.nan)
    assert loss_of(one, batch) == torch.finfo(torch.float32).max
    assert math.isfinite(loss_of(one, batch) - loss_of(start, batch)), "a rise that a store can hold"
