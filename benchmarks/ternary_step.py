"""A training step with ternary maps against one in full precision, of the same shape, by both engines.

Bound: at most 1.25 times. A step is forward, loss, backward and AdamW, in a process that keeps the memory it frees, as
`residuum train` does. The shapes are those of the recipes `bitnet-arithmetic` and `bitnet`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch

import harness
from residuum.model import Transformer
from residuum.train.memory import keep_freed_memory
from residuum.train.recipe import Recipe, load_recipe

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RECIPES = {"bitnet-arithmetic": 30, "bitnet": 12}
"""And the rounds of each."""


def main() -> None:
    rows: dict[str, Any] = {}
    for name, rounds in RECIPES.items():
        recipe = load_recipe(name)
        rows[name] = {"tokens": recipe.optim.batch_size * recipe.model.context}
        for engine in ("autograd", "explicit"):
            rows[name][engine] = harness.ratio(step(recipe, "ternary", engine), step(recipe, "float", engine), rounds)
            print(name, engine, rows[name][engine], flush=True)
    harness.save("ternary_step" if DEVICE == "cpu" else "ternary_step-cuda", {"bound": 1.25, "recipes": rows})


def step(recipe: Recipe, linear: Literal["float", "ternary"], engine: str) -> Callable[[], None]:
    torch.manual_seed(0)
    vocab_size = recipe.data.vocab_size if recipe.data.tokenizer == "bpe" else 64
    model = Transformer(dataclasses.replace(recipe.model, vocab_size=vocab_size, linear=linear)).to(DEVICE)
    tokens = torch.randint(vocab_size, (recipe.optim.batch_size, recipe.model.context), device=DEVICE)
    return harness.training_step(model, engine, tokens)


if __name__ == "__main__":
    keep_freed_memory()
    main()
