"""`GPT2LMHeadModel`: layer norms, a vector for each place, a feed-forward without a gate.

It always has biases: where ours has none they are written as zeros, which changes no output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residuum.export.huggingface.names import renamed, weights
from residuum.model import ModelConfig, Transformer
from residuum.model.positions import SinusoidalPositions

ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "squared_relu": "relu2"}
"""Their names of the non-linearity; gelu is the exact one, not the approximation that GPT-2 itself was trained with."""

MODULES = {
    "embedding": "transformer.wte",
    "positions": "transformer.wpe",
    "blocks.{}.attn_residual.norm": "transformer.h.{}.ln_1",
    "blocks.{}.attn.out": "transformer.h.{}.attn.c_proj",
    "blocks.{}.ff_residual.norm": "transformer.h.{}.ln_2",
    "blocks.{}.ff.up": "transformer.h.{}.mlp.c_fc",
    "blocks.{}.ff.down": "transformer.h.{}.mlp.c_proj",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}


def config(config: ModelConfig) -> dict[str, Any]:
    """What config.json says of the shape."""
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_inner": config.ff_width,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_positions": config.context,
        "activation_function": ACTIVATIONS[config.activation],
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.head == "tied",
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
    }


def tensors(model: Transformer) -> dict[str, Tensor]:
    """The weights by their names: maps as [d_in, d_out], queries, keys and values side by side in one."""
    ours = with_biases(model)
    found = {}
    for layer in range(model.config.n_layers):
        attn = f"blocks.{layer}.attn"
        for kind in ("weight", "bias"):
            fused = torch.cat([ours.pop(f"{attn}.{part}.{kind}") for part in "qkv"])
            found[f"transformer.h.{layer}.attn.c_attn.{kind}"] = fused.t() if kind == "weight" else fused
    for name, weight in ours.items():
        is_map = name.startswith("blocks.") and weight.ndim == 2
        found[renamed(name, MODULES)] = weight.t() if is_map else weight
    return found


def with_biases(model: Transformer) -> dict[str, Tensor]:
    """The weights, and zeros for the biases of maps and norms that have none; the places' vectors, learned or not."""
    found = weights(model)
    if isinstance(model.positions, SinusoidalPositions):
        found["positions.weight"] = model.positions.table.detach().float().cpu()
    for name, weight in list(found.items()):
        module, _, kind = name.rpartition(".")
        if kind == "gain" or (kind == "weight" and name.startswith("blocks.")):
            found.setdefault(f"{module}.bias", torch.zeros(len(weight)))
    return found
