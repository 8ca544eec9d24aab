"""A checkpoint is whole or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from residuum.errors import InputError
from residuum.files import whole_folder, write_whole
from residuum.model import ModelConfig, Transformer
from residuum.train.checkpoint import (
    list_checkpoints,
    load_moments,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from residuum.train.optimizer import make_optimizer
from residuum.train.recipe import OptimConfig

FILES = ["model.safetensors", "optimizer.safetensors", "state.json"]


def trained(seed: int = 0) -> tuple[Transformer, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(vocab_size=31, context=12, d_model=12, n_layers=2, n_heads=3, bias=True))
    optimizer = make_optimizer(model, OptimConfig(), torch.device("cpu"))
    for _ in range(3):
        tokens = torch.randint(31, (2, 12))
        optimizer.zero_grad()
        model.loss(tokens, tokens).backward()
        optimizer.step()
    return model, optimizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, optimizer = trained()
    save_checkpoint(tmp_path, 3, model, optimizer, {}, {}, keep=2)
    return save_checkpoint(tmp_path, 6, model, optimizer, {"metrics.jsonl": 40}, {"recipe.toml": "ab"}, keep=2)


def test_weights_and_moments_come_back_bit_for_bit(saved: Path) -> None:
    model, optimizer = trained()
    other, other_optimizer = trained(seed=1)
    checkpoint = newest_checkpoint(saved.parent)
    assert (checkpoint.step, checkpoint.log_bytes) == (6, {"metrics.jsonl": 40})
    assert checkpoint.made_from == {"recipe.toml": "ab"}
    load_weights(checkpoint, other)
    load_moments(checkpoint, other, other_optimizer)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    for p, q in pairs:
        assert torch.equal(p, q)
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, other_optimizer.state[q][key]), key


def test_decay_is_for_matrices_only() -> None:
    model, optimizer = trained()
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, p in model.named_parameters():
        assert (id(p) in decayed) == (p.ndim == 2), name


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_found(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    for place in {0, 1, 9, len(content) // 2, len(content) - 3}:
        flipped = bytearray(content)
        flipped[place] ^= 0x10
        (saved / name).write_bytes(flipped)
        with pytest.raises(InputError) as error:
            newest_checkpoint(saved.parent)
        assert str(saved / name) in str(error.value)
        assert f"delete {saved} to go on from step_00000003" in str(error.value)
        assert "\n" not in str(error.value)
    (saved / name).write_bytes(content)
    verify_checkpoint(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(InputError, match=rf"{name} is missing: delete .* to go on from step_00000003"):
        newest_checkpoint(saved.parent)


def test_without_another_checkpoint_the_mend_is_the_start(saved: Path) -> None:
    (saved.parent / "step_00000003").rename(saved.parent / "elsewhere")
    (saved / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="to go on from the start"):
        newest_checkpoint(saved.parent)
    with pytest.raises(InputError, match=r"damaged \(its checksum differs\): begin again"):
        newest_checkpoint(saved.parent, "begin again")


def test_with_another_checkpoint_there_is_no_need_to_begin_again(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="to go on from step_00000003"):
        newest_checkpoint(saved.parent, "begin again")


def test_weights_of_another_shape_are_refused(saved: Path) -> None:
    checkpoint = newest_checkpoint(saved.parent)
    wider = Transformer(ModelConfig(vocab_size=32, context=12, d_model=12, n_layers=2, n_heads=3, bias=True))
    with pytest.raises(InputError, match=r"embedding\.weight has shape \(31, 12\)"):
        load_weights(checkpoint, wider)
    deeper = Transformer(ModelConfig(vocab_size=31, context=12, d_model=12, n_layers=3, n_heads=3, bias=True))
    with pytest.raises(InputError, match=r"lacks blocks\.2"):
        load_weights(checkpoint, deeper)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    model, optimizer = trained()
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, step, model, optimizer, {}, {}, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000003", "step_00000010"]


def test_state_is_plain_json(saved: Path) -> None:
    state = json.loads((saved / "state.json").read_text())
    assert state["schema"] == "residuum.checkpoint/1"
    assert set(state["sha256"]) == {"model.safetensors", "optimizer.safetensors"}


def test_a_refused_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "kept", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*kept: No space left on device: make room"):
        write_whole(tmp_path / "kept", "new")
    with pytest.raises(InputError, match="make room"), whole_folder(tmp_path / "folder") as part:
        (part / "file").write_text("half")
    with pytest.raises(InputError, match="is no regular file"):
        write_whole(tmp_path, "over a folder")
    with pytest.raises(InputError, match="cannot write"):
        write_whole(tmp_path / "kept" / "below", "below a file")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "old"
