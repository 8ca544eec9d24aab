from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from residuum import TraceError
from residuum.audit.target import audit_target
from residuum.audit.targets.built import Built
from residuum.audit.targets.shrink import smaller
from residuum.cli import main
from residuum.errors import InputError

MODELS = """
import torch
from torch import nn
from residuum import ModelConfig, Transformer

def ours():
    return Transformer(ModelConfig(vocab_size=9, context=8, d_model=6, n_layers=3, n_heads=2))

def huge():
    config = ModelConfig(vocab_size=50000, context=8, d_model=16384, n_layers=3, n_heads=2)
    return Transformer(config), torch.zeros(1, 4, dtype=torch.long)

class Asks(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.map = nn.Embedding(9, 6), nn.Linear(6, 6)
    def forward(self, x):
        x = self.embed(x)
        return x + self.map(x) if x.sum().item() < 1e9 else x

class Names(nn.Module):
    def __init__(self):
        super().__init__()
        self.map, self.drop = nn.Linear(6, 6), nn.Dropout(0.5)
    def forward(self, model, scale=2.0, loss=None):
        return model + self.drop(self.map(model)) * scale + loss.mean()

def by_name():
    return Names(), {"model": torch.randn(2, 6), "loss": torch.randn(2, 6)}

def frozen():
    return nn.Embedding(9, 6).requires_grad_(False)

def unreal():
    return Asks().to("meta")

def breaks():
    return [][0]  # the line

class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Embedding(9, 5)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(5, 5), nn.Linear(6, 5))])
    def forward(self, x):
        return self.blocks[0](self.stem(x))
"""


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "structures.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "structures", raising=False)


def test_a_callable_runs_on_meta_tensors() -> None:
    audit = audit_target("structures:huge", structure=True)
    assert [r.shape for r in audit.graph.residuals] == [(1, 4, 16384)] * 6
    assert audit.notes == ["structure alone, on meta tensors"]
    assert set(audit.skipped) >= {"RS201", "RS202"}


def test_what_needs_values_says_so() -> None:
    assert len(list(audit_target("structures:Asks").graph.residuals)) == 1
    with pytest.raises(TraceError, match=r"Asks's forward pass raised RuntimeError: Tensor.item\(\)"):
        audit_target("structures:Asks", structure=True)


def test_a_recipe_has_a_structure(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[model]\nn_layers = 5\nd_model = 12\nn_heads = 3\n")
    for target in (recipe, tmp_path):
        assert len(list(audit_target(str(target), structure=True).graph.residuals)) == 10
    with pytest.raises(InputError, match="is a recipe, which has no weights: give --structure"):
        audit_target(str(recipe))
    with pytest.raises(InputError, match="audited on its own held-out text"):
        audit_target(str(tmp_path), inputs="structures:huge")


def test_the_module_that_raised_is_named() -> None:
    with pytest.raises(TraceError, match=r"Nested's forward pass raised RuntimeError in blocks\.0\.1: mat1 and mat2"):
        audit_target("structures:Nested")


def test_half_precision_that_a_device_lacks() -> None:
    def lacks(*_args: object, **_kwargs: object) -> None:
        raise TraceError("Linear's forward pass raised RuntimeError: \"addmm\" not implemented for 'Half'")

    with pytest.raises(InputError, match="this device lacks it in half precision: give the model in float32"):
        Built(nn.Linear(2, 2), ((torch.ones(2),), {})).run(lacks)


def test_shrinking_keeps_layers_and_proportions() -> None:
    config = {
        "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
        "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "qk_head_dim": 192, "v_head_dim": 128, "q_lora_rank": 1536,
        "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "vocab_size": 129280, "pad_token_id": 129279,
        "layer_types": ["a", "b"], "image_size": 224, "patch_size": 16, "max_position_embeddings": 4096,
    }  # fmt: skip
    copies = list(smaller(config))
    for small, _ in copies:
        assert small["qk_head_dim"] == small["qk_rope_head_dim"] + small["qk_nope_head_dim"]
        assert small["hidden_size"] * config["num_attention_heads"] * config["v_head_dim"] == (
            config["hidden_size"] * small["num_attention_heads"] * small["v_head_dim"]
        )
        assert small["n_routed_experts"] >= 2 * small["num_experts_per_tok"]
        assert small["n_routed_experts"] % small["n_group"] == 0
        assert small["pad_token_id"] < small["vocab_size"]
        for kept in ("num_hidden_layers", "layer_types", "image_size", "patch_size", "max_position_embeddings"):
            assert small[kept] == config[kept]
    assert copies[0][0]["hidden_size"] < 64
    assert copies[-1][0]["hidden_size"] == 7168
    assert "hidden_size 7168 → 56" in copies[0][1]


def test_the_command_takes_structure_and_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "inputs.json").write_text('{"tokens": {"shape": [2, 4], "high": 9}}')
    assert main(["audit", "structures:ours", "--inputs", "inputs.json", "--format", "json"]) == 0
    assert '"shape": [\n            2,\n            4,\n            6\n' in capsys.readouterr().out
    assert main(["audit", "structures:ours", "--inputs", "gone.json"]) == 2
    assert capsys.readouterr().err == "residuum: --inputs gone.json: no such file\n"
    assert main(["audit", "structures:Nested", "--structure"]) == 2
    assert capsys.readouterr().err.startswith("residuum: Nested's forward pass raised RuntimeError in blocks.0.1: ")


def test_an_audit_can_be_repeated_and_leaves_chance_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = audit_target("structures:by_name").to_dict()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    torch.manual_seed(4)
    assert audit_target("structures:by_name").to_dict() == first


def test_inputs_may_have_any_name() -> None:
    assert len(list(audit_target("structures:by_name", structure=True).graph.residuals)) == 1

    class Keyword(nn.Linear):
        def forward(self, x: torch.Tensor, *, loss: float) -> torch.Tensor:
            return super().forward(x) * loss

    with pytest.raises(InputError, match="the input 'loss' cannot be given by its name"):
        Built(Keyword(2, 2), ((torch.ones(2),), {"loss": 2.0})).run(lambda *args: None)
    with pytest.raises(InputError, match="do not fit Keyword's forward: got an unexpected keyword argument 'model'"):
        Built(Keyword(2, 2), ((torch.ones(2),), {"loss": 2.0, "model": 2.0})).run(lambda *args: None)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("structures:frozen", "carries no gradient: let a parameter require grad .*, or give --structure"),
        ("structures:unreal", "on the meta device have no values to measure: give --structure"),
        ("structures:Nested", r"\(the inputs were made, x \(2, 8\) of int64: give your own with --inputs\)"),
        ("structures:breaks", r"raised IndexError: list index out of range \(at structures.py:\d+\)"),
        ("structures:nothing", "module structures has no nothing"),
        ("attribute:build", r"importing attribute raised AttributeError: .* \(at attribute.py:2\)"),
        ("dependency:build", r"ModuleNotFoundError: No module named 'nobody_has_it' \(at dependency.py:1\)"),
        ("nobody_has_it.either:build", "no module named nobody_has_it: run from where it can be imported"),
    ],
)
def test_mends_that_the_command_can_follow(target: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "attribute.py").write_text("import torch\ntorch.nobody_has_it\n")
    (tmp_path / "dependency.py").write_text("import nobody_has_it\n")
    with pytest.raises((InputError, TraceError), match=message):
        audit_target(target)


@pytest.mark.parametrize("structure", [False, True])
def test_inputs_that_do_not_fit_are_named(structure: bool, tmp_path: Path) -> None:
    (tmp_path / "wrong.json").write_text('{"idz": [[1, 2]]}')
    with pytest.raises(TraceError, match=r"--inputs wrong.json: .* TypeError: missing a required argument: 'tokens'"):
        audit_target("structures:ours", structure, "wrong.json")


@pytest.mark.parametrize("structure", [False, True])
def test_an_installed_class_stands_where_it_is_built(
    structure: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert audit_target("structures:by_name", structure).seen.model_source.function == "Names"
    monkeypatch.setattr("residuum.audit.targets.built.is_installed", lambda file: not file.startswith(str(tmp_path)))
    assert audit_target("structures:ours", structure).seen.model_source.function == "ours"
