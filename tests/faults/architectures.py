"""Healthy models of many families, tiny and with random weights: what faults are planted in.

Each is as deep as a rule needs that compares siblings. `connections` are counted by reading the modelling code: the
streams in the order in which they begin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from residuum.model import ModelConfig, Transformer

LAYERS, D, HEADS, FF, VOCAB = 6, 12, 3, 20, 40
TOKENS = torch.randint(3, VOCAB, (2, 8), generator=torch.Generator().manual_seed(1))
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
STATES = torch.randn(2, 8, D, generator=torch.Generator().manual_seed(3))

Built = tuple[nn.Module, dict[str, Any]]


@dataclass(frozen=True)
class Architecture:
    build: Callable[[int], Built]
    connections: list[int]


def hugging_face(config: str, head: str, inputs: dict[str, Tensor], **values: Any) -> Built:
    transformers = pytest.importorskip("transformers", reason="because the extra hf is not installed")
    return getattr(transformers, head).from_config(getattr(transformers, config)(**values)), inputs


def ours(layers: int, residual: str = "pre") -> Built:
    shape = {"vocab_size": VOCAB, "context": 16, "d_model": D, "n_heads": HEADS, "n_layers": layers}
    return Transformer(ModelConfig(residual=residual, **shape)), {"tokens": TOKENS}


def gpt2(layers: int) -> Built:
    values = {"vocab_size": VOCAB, "n_embd": D, "n_layer": layers, "n_head": HEADS, "n_positions": 16}
    text = {"input_ids": TOKENS}
    return hugging_face("GPT2Config", "AutoModelForCausalLM", text, **values, bos_token_id=1, eos_token_id=2)


def common(layers: int) -> dict[str, int]:
    return {
        "hidden_size": D,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "intermediate_size": FF,
    }


def llama(layers: int) -> Built:
    text = {"input_ids": TOKENS}
    return hugging_face(
        "LlamaConfig", "AutoModelForCausalLM", text, **common(layers), vocab_size=VOCAB, num_key_value_heads=1
    )


def bert(layers: int) -> Built:
    text = {"input_ids": TOKENS}
    return hugging_face("BertConfig", "AutoModelForMaskedLM", text, **common(layers), vocab_size=VOCAB)


def vit(layers: int) -> Built:
    pixels = {"pixel_values": PIXELS}
    return hugging_face(
        "ViTConfig", "AutoModelForImageClassification", pixels, **common(layers), image_size=32, patch_size=8
    )


def t5(layers: int) -> Built:
    text = {"input_ids": TOKENS, "decoder_input_ids": TOKENS}
    values = {"vocab_size": VOCAB, "d_model": D, "d_kv": 4, "d_ff": FF, "num_layers": layers, "num_heads": HEADS}
    return hugging_face("T5Config", "AutoModelForSeq2SeqLM", text, **values)


def resnet(layers: int) -> Built:
    pixels = {"pixel_values": PIXELS}
    values = {"embedding_size": 6, "hidden_sizes": [8, 12], "depths": [layers, layers], "layer_type": "basic"}
    return hugging_face("ResNetConfig", "AutoModelForImageClassification", pixels, **values)


def mamba(layers: int) -> Built:
    text = {"input_ids": TOKENS}
    values = {"vocab_size": VOCAB, "hidden_size": D, "num_hidden_layers": layers, "state_size": 4}
    return hugging_face("MambaConfig", "AutoModelForCausalLM", text, **values)


def torch_encoder(layers: int, norm_first: bool = False) -> Built:
    layer = nn.TransformerEncoderLayer(D, HEADS, FF, batch_first=True, norm_first=norm_first)
    norm = nn.LayerNorm(D) if norm_first else None
    return nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False), {"src": STATES}


class ByHand(nn.Module):
    """Nobody's model: an RMS norm written out, a gated feed-forward, sums in the model's own forward."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(D, D)
        self.norms = nn.ModuleList(HandNorm() for _ in range(layers))
        self.mixers = nn.ModuleList(Mixer() for _ in range(layers))
        self.last, self.out = HandNorm(), nn.Linear(D, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return self.out(self.last(x))


class HandNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(D))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(D, FF), nn.Linear(D, FF), nn.Linear(FF, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.sigmoid(self.gate(x)) * self.up(x))


def by_hand(layers: int) -> Built:
    return ByHand(layers), {"x": STATES}


ARCHITECTURES = {
    "ours": Architecture(ours, [12]),
    "gpt2": Architecture(gpt2, [12]),
    "llama": Architecture(llama, [12]),
    "ours_post": Architecture(lambda layers: ours(layers, "post"), [12]),
    "bert": Architecture(bert, [12]),
    "vit": Architecture(vit, [12]),
    "t5": Architecture(t5, [12, 18]),
    "resnet": Architecture(resnet, [12]),
    # One connection a layer; the skip D·x that each mixer adds to its scan belongs to the mixer.
    "mamba": Architecture(lambda layers: mamba(2 * layers), [12]),
    "torch": Architecture(torch_encoder, [12]),
    "torch_pre": Architecture(lambda layers: torch_encoder(layers, norm_first=True), [12]),
    "by_hand": Architecture(lambda layers: by_hand(2 * layers), [12]),
}
