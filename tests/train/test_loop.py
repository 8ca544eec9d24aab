"""What one training step does, against plain PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from residuum.errors import InputError
from residuum.model import ModelConfig, Transformer
from residuum.train import Recipe, RunFolder, load, train
from residuum.train.batches import Batches
from residuum.train.loop import _precision
from residuum.train.recipe import DataConfig, OptimConfig, RunConfig
from residuum.train.schedule import learning_rate
from residuum.train.text import read_corpus
from residuum.train.tokenizer import ByteTokenizer, tokenize


def recipe(text_folder: Path, **optim) -> Recipe:
    return Recipe(
        RunConfig(steps=4, eval_every=2, eval_tokens=100, sample_tokens=4, log_every=1),
        DataConfig(source=str(text_folder), held_out=0.3),
        ModelConfig(context=16, d_model=12, n_layers=2, n_heads=3),
        OptimConfig(**{"batch_size": 4, "warmup": 2, "lr": 1e-2, **optim}),
    )


def trained(path: Path, recipe: Recipe) -> Transformer:
    return train(RunFolder.create(path), recipe)


def test_a_run_is_plain_adamw(text_folder: Path, tmp_path: Path) -> None:
    """Written out again with PyTorch's own parts: accumulation, clipping, decay of matrices, the schedule."""
    chosen = recipe(text_folder, accumulate=2, clip=0.3, weight_decay=0.2)
    ours = trained(tmp_path / "run", chosen)
    torch.manual_seed(0)
    plain = Transformer(ours.config)
    groups = [
        {"params": [p for p in plain.parameters() if p.ndim == 2], "weight_decay": 0.2},
        {"params": [p for p in plain.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False)
    tokens = tokenize(ByteTokenizer(), read_corpus(chosen.data).train)
    batches = Batches(tokens, 16, 4, seed=0)
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 4, chosen.optim)
        pairs = [batches.at(step, micro) for micro in range(2)]
        optimizer.zero_grad()
        # Both passes as one batch twice as large: equal, for every sequence is equally long.
        plain.loss(torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])).backward()
        norm = torch.stack([p.grad.norm() for p in plain.parameters()]).norm()
        for p in plain.parameters():
            p.grad.mul_(min(1.0, 0.3 / (norm + 1e-6)))
        optimizer.step()
    for (name, p), q in zip(plain.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-5, msg=name)


def test_metrics_say_what_happened(text_folder: Path, tmp_path: Path) -> None:
    trained(tmp_path / "run", recipe(text_folder))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["step"] for line in lines if "bits_per_byte" in line] == [2, 4]
    for line in lines[1:]:  # byte tokens: one byte each, so both units are one logarithm apart
        assert line["train_bits_per_byte"] == pytest.approx(line["loss"] / 0.6931471805599453)
    samples = (tmp_path / "run" / "samples.txt").read_text()
    assert samples.count("== step ") == 2


def test_load_gives_the_trained_model(text_folder: Path, tmp_path: Path) -> None:
    model = trained(tmp_path / "run", recipe(text_folder))
    loaded = load(tmp_path / "run")
    assert not loaded.training
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True))
    for wrong in (None, 5, b"run", ""):
        with pytest.raises(InputError, match="is no folder: give the folder of a run"):
            load(wrong)


def test_bfloat16_products_where_asked_for(text_folder: Path, tmp_path: Path) -> None:
    with _precision("bfloat16", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with _precision("auto", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_no_memory_for_the_model_is_one_line(text_folder: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    huge = replace(recipe(text_folder), model=ModelConfig(d_model=2**30, n_heads=2, n_layers=1, context=16))
    with pytest.raises(InputError, match=r"does not fit in memory: make model\.d_model smaller"):
        trained(tmp_path / "run", huge)
    assert not (tmp_path / "run").exists()
