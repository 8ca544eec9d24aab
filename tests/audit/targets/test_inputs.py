from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from residuum.audit.targets.given import given_inputs
from residuum.audit.targets.inputs import describe, make_inputs
from residuum.errors import InputError
from residuum.model import ModelConfig, Transformer


class Reads(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.layer(x) * scale


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Embedding(7, 3), (2, 8)),
        (nn.Conv2d(5, 3, 3), (2, 5, 64, 64)),
        (nn.Conv1d(1, 3, 3), (2, 1, 16000)),
        (nn.Conv1d(80, 3, 3), (2, 80, 256)),
    ],
)
def test_the_first_layer_tells_what_is_read(layer: nn.Module, shape: tuple[int, ...]) -> None:
    (first, *_) = make_inputs(Reads(layer))
    assert {name: tuple(value.shape) for name, value in first.items()} == {"x": shape}
    Reads(layer)(**first)
    (again, *_) = make_inputs(Reads(layer))
    assert torch.equal(first["x"], again["x"])


def test_our_own_model_gets_tokens_of_its_vocabulary() -> None:
    model = Transformer(ModelConfig(vocab_size=5, context=9, d_model=6, n_layers=1, n_heads=2))
    (inputs,) = make_inputs(model)
    assert list(inputs) == ["tokens"]
    assert inputs["tokens"].max() < 5
    assert describe(inputs) == "tokens (2, 8) of int64"


def test_tokens_of_a_vocabulary_that_nothing_could_list() -> None:
    model = Reads(nn.Embedding(7, 3))
    model.config = SimpleNamespace(vocab_size=10**30)
    assert next(make_inputs(model))["x"].shape == (2, 8)


def test_tokens_keep_to_the_positions_and_from_the_special_ones() -> None:
    model = Reads(nn.Embedding(5, 3))
    model.config = SimpleNamespace(vocab_size=5, pad_token_id=0, eos_token_id=[1, 3], n_positions=4)
    tokens = next(make_inputs(model))["x"]
    assert tokens.shape == (2, 4)
    assert set(tokens.flatten().tolist()) == {2, 4}


def test_inputs_have_the_models_device_and_type() -> None:
    (inputs, *_) = make_inputs(Reads(nn.Conv2d(3, 2, 3, device="meta", dtype=torch.bfloat16)))
    assert (inputs["x"].device.type, inputs["x"].dtype) == ("meta", torch.bfloat16)


def test_an_unknown_argument_is_named() -> None:
    class Needs(Reads):
        def forward(self, x: Tensor, angles: Tensor) -> Tensor:
            return self.layer(x) + angles

    with pytest.raises(InputError, match=r"argument 'angles' of Needs: .*--inputs.*\"angles\": \{\"shape\": \[2, 8\]"):
        next(make_inputs(Needs(nn.Embedding(7, 3))))
    with pytest.raises(InputError, match=r"no inputs can be made for Reads: .*\"x\""):
        next(make_inputs(Reads(nn.Linear(3, 3))))


def test_given_as_shapes_numbers_or_tensors(tmp_path: Path) -> None:
    described = tmp_path / "inputs.json"
    described.write_text(
        json.dumps(
            {
                "ids": {"shape": [2, 3], "dtype": "int64", "low": 4, "high": 6},
                "x": {"shape": [5], "dtype": "bfloat16"},
                "mask": [[True, False]],
                "flag": True,
            }
        )
    )
    args, inputs = given_inputs(str(described))
    assert args == ()
    assert set(inputs["ids"].flatten().tolist()) <= {4, 5}
    assert (inputs["x"].shape, inputs["x"].dtype) == ((5,), torch.bfloat16)
    assert inputs["mask"].dtype == torch.bool
    assert inputs["flag"] is True
    assert torch.equal(given_inputs(str(described))[1]["x"], inputs["x"])
    (tmp_path / "inputs.toml").write_text("[ids]\nshape = [1, 2]\nhigh = 9\n")
    assert given_inputs(str(tmp_path / "inputs.toml"))[1]["ids"].dtype == torch.int64
    save_file({"x": torch.ones(3)}, tmp_path / "inputs.safetensors")
    assert torch.equal(given_inputs(str(tmp_path / "inputs.safetensors"))[1]["x"], torch.ones(3))


def test_given_by_a_callable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_batches.py").write_text("import torch\n\ndef one():\n    return {'x': torch.ones(2)}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert torch.equal(given_inputs("their_batches:one")[1]["x"], torch.ones(2))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pt", b"", "give a .safetensors, .json or .toml file, or package.module:callable"),
        ("a.json", b"{", "mend the file"),
        ("a.json", b"[1]", "hold one table of names"),
        ("a.json", b"{}", "holds no input"),
        ("a.json", b"\xff\xfe{", "mend the file"),
        ("a.json", b'{"x": {"shape": [0]}}', r"'x': shape is \[0\]"),
        ("a.json", b'{"x": {"shape": "big"}}', "'x': shape is 'big'"),
        ("a.json", b'{"x": {"shape": [1], "dtype": "int65"}}', "dtype is 'int65'"),
        ("a.json", b'{"x": {"shape": [1], "dtype": 3}}', "dtype is 3"),
        ("a.json", b'{"x": {"shape": [1], "high": 0}}', "low below high"),
        ("a.json", b'{"x": {"shape": [1], "hihg": 1}}', "has the key 'hihg': it may hold shape, dtype, low, high"),
        ("a.json", b'{"x": {"shape": [1000000000, 1000000000]}}', "'x' cannot be made"),
        ("a.json", b'{"x": {"shape": [2], "dtype": ["int8"]}}', r"dtype is \['int8'\]"),
        ("a.json", b'{"x": {"shape": [2], "dtype": "uint4"}}', "'x' cannot be made"),
        ("a.json", b'{"x": {"shape": [2], "high": 1000000000000000000000}}', "'x' cannot be made"),
        ("a.json", b'{"x": [[1], [1, 2]]}', "'x' is no tensor"),
        ("a.toml", b"x = ", "mend the file"),
        ("a.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "a.safetensors is damaged"),
    ],
)
def test_inputs_at_fault_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        given_inputs(str(path))


def test_missing_inputs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        given_inputs(str(tmp_path / "gone.json"))
