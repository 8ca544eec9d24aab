"""Small models of random weights, saved here and loaded without a network."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from residuum.audit.target import audit_target
from residuum.errors import InputError

transformers = pytest.importorskip("transformers", reason="because the extra hf is not installed")

LLAMA = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a local folder must not reach for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def small(kind: str) -> Any:
    """A model of another kind of input each."""
    t = transformers
    if kind == "tokens, encoder and decoder":
        config = t.T5Config(d_model=16, d_kv=4, d_ff=20, num_heads=4, vocab_size=40, num_layers=2)
        return t.T5ForConditionalGeneration(config)
    if kind == "pixels":
        config = t.ViTConfig(
            hidden_size=12,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=20,
            image_size=24,
            patch_size=8,
        )
        return t.ViTForImageClassification(config)
    if kind == "features":
        config = t.WhisperConfig(
            d_model=12, encoder_layers=1, decoder_layers=2, encoder_attention_heads=3, decoder_attention_heads=3,
            encoder_ffn_dim=20, decoder_ffn_dim=20, vocab_size=40, num_mel_bins=7, max_source_positions=9,
            max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
            suppress_tokens=None, begin_suppress_tokens=None,
        )  # fmt: skip
        return t.WhisperForConditionalGeneration(config)
    if kind == "waveforms":
        config = t.HubertConfig(
            hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20, conv_dim=(8, 8),
            conv_kernel=(10, 3), conv_stride=(160, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2, vocab_size=9,
        )  # fmt: skip
        return t.HubertForCTC(config)
    tower = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
    return t.CLIPModel(
        t.CLIPConfig(
            text_config={**tower, "vocab_size": 40, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0},
            vision_config={**tower, "image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
    )


@pytest.mark.parametrize(
    ("kind", "made", "connections"),
    [
        ("tokens, encoder and decoder", "input_ids (2, 8) of int64, decoder_input_ids (2, 8) of int64", 2 * 2 + 2 * 3),
        ("pixels", "pixel_values (2, 3, 24, 24) of float32", 2 * 2),
        ("features", "input_features (2, 7, 18) of float32, decoder_input_ids (2, 8) of int64", 1 * 2 + 2 * 3),
        ("waveforms", "input_values (2, 16000) of float32", 1 + 2 * 2),
        ("tokens and pixels", "input_ids (2, 8) of int64, pixel_values (2, 3, 16, 16) of float32", 1 * 2 + 1 * 2),
    ],
)
def test_folders_of_every_kind_of_input(kind: str, made: str, connections: int, tmp_path: Path) -> None:
    small(kind).save_pretrained(tmp_path)
    audit = audit_target(str(tmp_path))
    assert len(list(audit.graph.residuals)) == connections
    assert audit.flow.loss_name
    assert audit.notes[1] == f"inputs made: {made}"
    structure = audit_target(str(tmp_path), structure=True)
    assert [r.source for r in structure.graph.residuals] == [r.source for r in audit.graph.residuals]


def test_a_config_alone_has_a_structure(llama: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.json"
    alone.write_text((llama / "config.json").read_text())
    audit = audit_target(str(alone), structure=True)
    assert [r.branch for r in audit.graph.residuals][:2] == ["model.layers.0.self_attn", "model.layers.0.mlp"]
    assert audit.notes == ["structure alone, on meta tensors", "inputs made: input_ids (2, 8) of int64"]
    assert audit.seen.measured is None
    with pytest.raises(InputError, match=r"holds a config and no \*\.safetensors: give --structure"):
        audit_target(str(alone))


@pytest.mark.parametrize("architectures", [None, 5, ["Nobodys"]])
def test_a_config_without_architectures_is_the_bare_model(architectures: Any, llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
    audit = audit_target(str(llama))
    assert audit.notes[0] == "loaded as LlamaModel in float32"
    assert len(list(audit.graph.residuals)) == 4


def test_a_model_too_large_for_any_memory(llama: Path) -> None:
    large = {"hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128, "num_key_value_heads": 8}
    config = json.loads((llama / "config.json").read_text())
    config.pop("head_dim")
    (llama / "config.json").write_text(json.dumps({**config, **large, "vocab_size": 128256, "num_hidden_layers": 126}))
    audit = audit_target(str(llama), structure=True)
    assert len(list(audit.graph.residuals)) == 252
    assert next(audit.graph.residuals).shape == (2, 8, 16384)


def test_experts_on_meta_tensors_take_bfloat16(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(
        **{**LLAMA, "intermediate_size": 32}, num_local_experts=4, architectures=["MixtralForCausalLM"]
    )
    config.save_pretrained(tmp_path)
    audit = audit_target(str(tmp_path), structure=True)
    assert len(list(audit.graph.residuals)) == 4
    assert audit.notes[-1] == "built in bfloat16, for float32 did not run on meta tensors"


def test_what_asks_for_values_is_shrunk_in_all_but_its_layers(tmp_path: Path) -> None:
    config = transformers.LongformerConfig(
        architectures=["LongformerForMaskedLM"], attention_window=[4, 4, 4], num_hidden_layers=3, pad_token_id=1
    )
    config.save_pretrained(tmp_path)
    audit = audit_target(str(tmp_path), structure=True)
    assert len(list(audit.graph.residuals)) == 6
    assert audit.notes[0].startswith("shrunk and run on real tensors: ")
    assert "hidden_size 768 → 48" in audit.notes[0]
    assert "because LongformerForMaskedLM's forward pass raised" in audit.notes[0]
    assert "num_hidden_layers" not in audit.notes[0]


def test_a_callables_model_is_shrunk_through_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_longformer.py").write_text(
        "from transformers import LongformerConfig, LongformerModel\n"
        "def build():\n"
        "    return LongformerModel(LongformerConfig(attention_window=[4, 4], num_hidden_layers=2))\n"
    )
    monkeypatch.chdir(tmp_path)
    audit = audit_target("their_longformer:build", structure=True)
    assert len(list(audit.graph.residuals)) == 4
    assert "hidden_size 768 → 48" in audit.notes[0]


def test_missing_weights_are_told(llama: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(llama / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, llama / "model.safetensors", {"format": "pt"})
    note = "and random: 1 weight, such as model.layers.1.mlp.down_proj.weight"
    audit = audit_target(str(llama))
    assert note in audit.notes[0] and audit.notes[0].startswith("warning: ")


def test_weights_of_another_model_are_no_model(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(InputError, match=r"none of its weights belongs to BertForMaskedLM: .*\(llama\)"):
        audit_target(str(llama))


def test_half_precision_is_kept_and_told(llama: Path) -> None:
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).bfloat16().save_pretrained(llama)
    assert audit_target(str(llama)).notes[0] == "loaded as LlamaForCausalLM in bfloat16"


def test_given_inputs_are_the_ones_that_run(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "inputs.json"
    file.write_text(json.dumps({"input_ids": {"shape": [3, 5], "high": 40}}))
    for structure in (False, True):
        audit = audit_target(str(llama), structure=structure, inputs=str(file))
        assert next(audit.graph.residuals).shape == (3, 5, 16)
        assert not [note for note in audit.notes if note.startswith("inputs made")]


def damage(folder: Path, fault: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    content = json.loads(config.read_text())
    if fault == "pickle":
        weights.unlink()
        torch.save({}, folder / "pytorch_model.bin")
    elif fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "no json":
        config.write_text("{")
    elif fault == "no table":
        config.write_text("null")
    elif fault == "no activation":
        config.write_text(json.dumps({**content, "hidden_act": "nopeact"}))
    elif fault == "other sizes":
        config.write_text(json.dumps({**content, "intermediate_size": 24}))
    elif fault == "unknown type":
        config.write_text(json.dumps({**content, "model_type": "perpetuum"}))
    elif fault == "no type":
        config.write_text("{}")
    elif fault == "its own code":
        auto = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
        config.write_text(json.dumps({**content, "model_type": "perpetuum", "auto_map": auto}))
        (folder / "theirs.py").write_text("raise SystemExit('their code ran')\n")
    elif fault == "impossible":
        config.write_text(json.dumps({**content, "hidden_size": "wide"}))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("pickle", "holds its weights in a pickle, which can run code as it is read"),
        ("truncated", "its weights cannot be read: SafetensorError"),
        ("no json", r"config.json cannot be read: .*: write it anew"),
        ("no table", "config.json holds no table of settings"),
        ("no activation", "transformers knows no 'nopeact', which its config names"),
        ("other sizes", "its weights are of other sizes than the config says"),
        ("unknown type", "its config cannot be read: ValueError: .*perpetuum"),
        ("no type", "its config cannot be read: ValueError: Unrecognized model"),
        ("its own code", "asks for code of its own, which is not run: build the model in a callable that you trust"),
        ("impossible", "its config cannot be read: .*hidden_size"),
    ],
)
def test_damaged_folders_get_one_line(fault: str, message: str, llama: Path) -> None:
    damage(llama, fault)
    with pytest.raises(InputError, match=message) as raised:
        audit_target(str(llama))
    assert "\n" not in str(raised.value)


def test_an_id_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for structure in (False, True):
        with pytest.raises(InputError, match="nobody/nothing: its config cannot be read: OSError"):
            audit_target("nobody/nothing", structure=structure)


def test_without_the_extra(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"takes the extra hf: pip install residuum\[hf\]"):
        audit_target(str(llama))
