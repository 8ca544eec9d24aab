"""Shapes in annotations are checked while the tests run; what several tests need stands here."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

PARTS = (
    "attend",
    "attention",
    "block",
    "cross_entropy",
    "dropout",
    "embedding",
    "experts",
    "feedforward",
    "generate",
    "gradient",
    "linear",
    "norm",
    "positions",
    "product",
    "residual",
    "transformer",
)
install_import_hook([f"residuum.model.{part}" for part in PARTS], "beartype.beartype")
settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
settings.load_profile("untimed")

import torch

from residuum.model import ModelConfig, Transformer

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def shared_data() -> Path:
    """Real data that is not part of the project."""
    if not DATA.is_dir():
        pytest.skip("because the shared data folder is not beside this checkout")
    return DATA


@pytest.fixture
def tiny() -> Transformer:
    """Width and heads that no power of two hides behind."""
    return Transformer(ModelConfig(vocab_size=31, context=12, d_model=12, n_layers=3, n_heads=3))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty small documents, the same in every session."""
    folder = tmp_path_factory.mktemp("text")
    words = ["the", "stream", "carries", "every", "value", "forward", "and", "each", "gradient", "back", "again"]
    for number in range(40):
        lines = [" ".join(words[(number * 7 + line * 3 + i) % len(words)] for i in range(9)) for line in range(8)]
        (folder / f"{number:02}.txt").write_text("\n".join(lines) + "\n")
    return folder
