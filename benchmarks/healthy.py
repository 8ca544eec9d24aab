"""How far healthy models go, at their own initialisation: where thresholds of the RS2xx and RS3xx rules come from.

Other people's architectures with their own random weights, twelve blocks deep and narrow enough to run anywhere, and
this project's Transformer. For every quantity, the extreme over all connections of all seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
import transformers
from torch import nn

import harness
from residuum import flow
from residuum.model import ModelConfig, Transformer
from residuum.stream import Flow

SEEDS = 3
TEXT = {"vocab_size": 300, "hidden_size": 96, "num_hidden_layers": 12, "num_attention_heads": 4}


def models() -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    """(name, model, inputs)."""
    tokens = {"input_ids": torch.randint(300, (2, 40))}
    image = {"pixel_values": torch.randn(2, 3, 64, 64)}
    gpt2 = transformers.GPT2Config(vocab_size=300, n_embd=96, n_layer=12, n_head=4, bos_token_id=0, eos_token_id=0)
    llama = transformers.LlamaConfig(**TEXT, num_key_value_heads=2, intermediate_size=256)
    t5 = transformers.T5Config(vocab_size=300, d_model=96, d_kv=24, d_ff=384, num_layers=6, num_heads=4)
    vit = transformers.ViTConfig(
        hidden_size=96, num_hidden_layers=12, num_attention_heads=4, intermediate_size=384, image_size=64, patch_size=8
    )
    resnet = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[2, 2, 2, 2])
    yield "gpt2", transformers.GPT2LMHeadModel(gpt2), tokens
    yield "llama", transformers.LlamaForCausalLM(llama), tokens
    yield "bert", transformers.BertForMaskedLM(transformers.BertConfig(**TEXT, intermediate_size=384)), tokens
    yield "t5", transformers.T5ForConditionalGeneration(t5), {**tokens, "decoder_input_ids": tokens["input_ids"]}
    yield "vit", transformers.ViTForImageClassification(vit), image
    yield "resnet", transformers.ResNetForImageClassification(resnet), image
    for residual in ("pre", "post"):
        config = ModelConfig(vocab_size=300, context=40, d_model=96, n_layers=12, n_heads=4, residual=residual)
        yield f"residuum {residual}", Transformer(config), {"tokens": tokens["input_ids"]}


def extremes(seen: Flow) -> dict[str, list[float]]:
    """[least, most] of every quantity that a rule looks at."""
    every = seen.all_measured
    forward, backward = [m.forward for m in every], [m.backward for m in every if m.backward]
    trained = [p for p in seen.parameters.values() if p.gradient_rms and p.weight_rms and p.dimensions > 1]
    ends = [(stream[0].forward, stream[-1].forward) for stream in seen.measured]
    found = {
        "write share": [f.write_share for f in forward],
        "influence": [f.influence for f in forward],
        "influence over its median": [
            m.forward.influence / median(m.forward.influence for m in stream)
            for stream in seen.measured
            for m in stream
        ],
        "outlier": [f.outlier for f in forward],
        "state, last over first": [last.state_rms / first.state_rms for first, last in ends],
        "rank, last over first": [last.effective_rank / first.effective_rank for first, last in ends],
        "rank over its ceiling": [f.effective_rank / f.sampled for f in forward],
        "gradient's factor per connection": [math.exp(s.gradient) for s in seen.slopes if s.gradient is not None],
        "identity share": [b.identity_share for b in backward],
        "cosine": [b.cosine for b in backward],
        "gradient over weight, matrices": [p.gradient_rms / p.weight_rms for p in trained if p.gradient_rms],
    }
    return {name: [min(values), max(values)] for name, values in found.items()}


def main() -> None:
    figures: dict[str, dict[str, list[float]]] = {}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        for name, model, inputs in models():
            for quantity, (least, most) in extremes(flow(model.eval(), **inputs)).items():
                low, high = figures.setdefault(name, {}).get(quantity, [math.inf, -math.inf])
                figures[name][quantity] = [min(least, low), max(most, high)]
    harness.save("healthy", {"seeds": SEEDS, "[least, most] at initialisation": figures})


if __name__ == "__main__":
    main()
