"""What works raises no alarm: other people's models with their own random weights, and ours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import residuum
from residuum.model import ModelConfig, Transformer

sys.path.insert(0, str(Path(__file__).parents[2] / "stream"))


@pytest.mark.parametrize("seed", [0, 1])
def test_other_peoples_models(seed: int) -> None:
    from test_graph import hugging_face

    torch.manual_seed(seed)
    for name, model, inputs, _ in hugging_face():
        audit = residuum.audit(model.eval(), **inputs)
        judged = [f for f in audit.findings if f.code[:3] in ("RS2", "RS3") and f.severity != "info"]
        # BERT's pooler is read by nothing that the output's first tensor depends on: a true finding.
        assert [f.code for f in judged] == (["RS203"] if name == "bert" else []), (name, judged)
        assert audit.flow.nan_maker is None


@pytest.mark.parametrize("residual", ["pre", "post"])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_ours(residual: str, positions: str) -> None:
    config = ModelConfig(
        vocab_size=31, context=16, d_model=24, n_layers=6, n_heads=3, residual=residual, positions=positions
    )
    audit = residuum.audit(Transformer(config), torch.randint(31, (2, 16)))
    assert [f for f in audit.findings if f.code[:3] in ("RS2", "RS3")] == []
