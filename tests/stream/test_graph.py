"""Discovery: every connection with its file, line, kind and placement, and nothing else."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import residuum
from residuum.model import ModelConfig, Transformer
from residuum.model.residual.post import Post
from residuum.model.residual.pre import Pre

sys.path.insert(0, str(Path(__file__).parent))
import models

TOKENS = torch.arange(10).view(2, 5)


def line_of(function, text: str) -> int:
    """The line where `text` stands in `function`."""
    lines, start = inspect.getsourcelines(function)
    return start + next(i for i, line in enumerate(lines) if text in line)


@pytest.mark.parametrize("kind", models.CONNECTED, ids=lambda kind: kind.__name__)
def test_every_way_of_writing_a_connection(kind: type[models.Stack]) -> None:
    graph = residuum.trace(kind(), torch.randn(3, 2, 4))
    (stream,) = graph.streams
    assert [(r.kind, r.placement) for r in stream.residuals] == [kind.expected] * 3
    assert stream.origin == "embed"
    assert stream.final_norm == ("last" if kind.final else None)


def test_source_is_the_line_of_the_sum() -> None:
    for kind, function, text in (
        (models.PreNorm, models.PreNorm.layer, "return x +"),
        (models.InPlace, models.InPlace.layer, "write += x"),
        (models.Helper, models.join, "skip + write"),
    ):
        for residual in residuum.trace(kind(), torch.randn(3, 2, 4)).residuals:
            assert residual.source.file == models.__file__
            assert residual.source.line == line_of(function, text)
            assert residual.source.function == function.__qualname__


def test_branches_are_named_by_their_weights() -> None:
    residuals = list(residuum.trace(models.PreNorm(), torch.randn(3, 2, 4)).residuals)
    assert [r.branch for r in residuals] == ["mlps.0", "mlps.1", "mlps.2"]
    assert [r.module for r in residuals] == [""] * 3  # the model's own forward adds


def test_sums_that_are_no_connection() -> None:
    assert residuum.trace(models.NoConnections(), TOKENS).streams == []


def test_resnet() -> None:
    model = models.ResNet()
    (stream,) = residuum.trace(model, torch.randn(2, 3, 8, 8)).streams
    assert tuple(r.kind for r in stream.residuals) == models.ResNet.kinds
    assert [r.module for r in stream.residuals] == [f"blocks.{i}" for i in range(4)]
    expected = line_of(models.BasicBlock.forward, "out += identity")
    assert {r.source.line for r in stream.residuals} == {expected}


@pytest.mark.parametrize("positions", ["learned", "rotary", "sinusoidal"])
@pytest.mark.parametrize("activation", ["gelu", "squared_relu", "swiglu"])
@pytest.mark.parametrize(("norm", "kv_heads"), [("layernorm", None), ("rmsnorm", 1)])
def test_our_own(positions: str, activation: str, norm: str, kv_heads: int | None) -> None:
    shape = {"vocab_size": 31, "context": 8, "d_model": 12, "n_heads": 3, "n_layers": 2, "dropout": 0.1}
    for residual, kind, text in (("pre", Pre, "x + branch"), ("post", Post, "x + branch")):
        config = ModelConfig(
            positions=positions, activation=activation, norm=norm, n_kv_heads=kv_heads, residual=residual, **shape
        )
        (stream,) = residuum.trace(Transformer(config), TOKENS).streams
        assert [(r.branch, r.kind, r.placement) for r in stream.residuals] == [
            (f"blocks.{i}.{part}", "identity", residual) for i in range(2) for part in ("attn", "ff")
        ]
        assert {r.source.line for r in stream.residuals} == {line_of(kind.forward, text)}
        assert stream.origin == "embedding"
        assert stream.final_norm == ("final_norm" if residual == "pre" else None)


def test_the_plain_network_has_none(tiny: Transformer) -> None:
    plain = Transformer(ModelConfig(vocab_size=31, context=8, d_model=12, n_heads=3, n_layers=2, residual="none"))
    assert residuum.trace(plain, TOKENS).streams == []


def hugging_face() -> list:
    transformers = pytest.importorskip("transformers", reason="because the extra hf is not installed")
    common = {"vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    llama = transformers.LlamaConfig(**common, num_key_value_heads=1, intermediate_size=20)
    bert = transformers.BertConfig(**common, intermediate_size=20)
    gpt2 = transformers.GPT2Config(
        vocab_size=40, n_embd=12, n_layer=2, n_head=3, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    t5 = transformers.T5Config(vocab_size=40, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_heads=3)
    resnet = transformers.ResNetConfig(embedding_size=6, hidden_sizes=[8, 12], depths=[2, 2], layer_type="basic")
    image = {"pixel_values": torch.randn(2, 3, 32, 32)}
    text = {"input_ids": TOKENS}
    return [
        # name, model, inputs, and by hand: branch, kind, placement and the text of the line for each connection
        ("gpt2", transformers.GPT2LMHeadModel(gpt2), text,
         [(f"transformer.h.{i}.{b}", "identity", "pre", t) for i in range(2)
          for b, t in (("attn", "attn_output + residual"), ("mlp", "residual + feed_forward_hidden_states"))]),
        ("llama", transformers.LlamaForCausalLM(llama), text,
         [(f"model.layers.{i}.{b}", "identity", "pre", "residual + hidden_states") for i in range(2)
          for b in ("self_attn", "mlp")]),
        ("bert", transformers.BertModel(bert), text,
         [(f"encoder.layer.{i}{b}", "identity", "post", "hidden_states + input_tensor") for i in range(2)
          for b in (".attention", "")]),
        ("t5", transformers.T5ForConditionalGeneration(t5), {**text, "decoder_input_ids": TOKENS},
         [(f"{side}.block.{i}.layer.{j}.{b}", "identity", "pre", "hidden_states + self.dropout") for side, parts in
          (("encoder", ("SelfAttention", "DenseReluDense")),
           ("decoder", ("SelfAttention", "EncDecAttention", "DenseReluDense")))
          for i in range(2) for j, b in enumerate(parts)]),
        ("resnet", transformers.ResNetForImageClassification(resnet), image,
         [(f"resnet.encoder.stages.{s}.layers.{i}.layer", "projected" if i == 0 else "identity", "post",
           "hidden_state += residual") for s in range(2) for i in range(2)]),
    ]  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
def test_architectures_of_others(training: bool) -> None:
    for name, model, inputs, expected in hugging_face():
        graph = residuum.trace(model.train(training), **inputs)
        found = list(graph.residuals)
        assert [(r.branch, r.kind, r.placement) for r in found] == [e[:3] for e in expected], name
        assert len(graph.streams) == (2 if name == "t5" else 1)
        for residual, (*_, text) in zip(found, expected, strict=True):
            line = Path(residual.source.file).read_text().splitlines()[residual.source.line - 1]
            assert text in line, (name, residual.source, line)


def test_torchs_own_encoder_layer_in_train_and_eval() -> None:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(12, 3, 20, batch_first=True), 2, enable_nested_tensor=False
    )
    for training in (True, False):
        (stream,) = residuum.trace(model.train(training), torch.randn(2, 5, 12)).streams
        assert [(r.module, r.placement) for r in stream.residuals] == [
            (f"layers.{i}", "post") for i in range(2) for _ in range(2)
        ]
        assert all(r.source.file.endswith("torch/nn/modules/transformer.py") for r in stream.residuals)


def test_meta_tensors_give_the_same_graph() -> None:
    config = ModelConfig(vocab_size=31, context=8, d_model=12, n_heads=3, n_layers=2, positions="rotary")
    real = residuum.trace(Transformer(config), TOKENS)
    with torch.device("meta"):
        meta = residuum.trace(Transformer(config), torch.zeros(2, 5, dtype=torch.long))
    assert list(meta.residuals) == list(real.residuals)


def test_a_forward_that_raises_is_one_line(tiny: Transformer) -> None:
    with pytest.raises(residuum.TraceError, match="Transformer's forward pass raised ValueError: 30 tokens are more"):
        residuum.trace(tiny, torch.zeros(1, 30, dtype=torch.long))


def test_printed() -> None:
    text = str(residuum.trace(models.PreNorm(), torch.randn(3, 2, 4)))
    assert "stream 0 from embed: 3 connections" in text
    assert "models.py" in text
