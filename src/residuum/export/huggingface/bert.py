"""`BertModel`: an encoder whose norms follow the additions, and one the embedding; its output is the last state.

It has parts that ours lacks, written as zeros: biases where there are none, the vector of the one kind of token, and
the pooler, whose output is thereby 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residuum.export.huggingface.gpt2 import ACTIVATIONS, with_biases
from residuum.export.huggingface.names import renamed
from residuum.model import ModelConfig, Transformer

MODULES = {
    "embedding": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "blocks.{}.attn.q": "encoder.layer.{}.attention.self.query",
    "blocks.{}.attn.k": "encoder.layer.{}.attention.self.key",
    "blocks.{}.attn.v": "encoder.layer.{}.attention.self.value",
    "blocks.{}.attn.out": "encoder.layer.{}.attention.output.dense",
    "blocks.{}.attn_residual.norm": "encoder.layer.{}.attention.output.LayerNorm",
    "blocks.{}.ff.up": "encoder.layer.{}.intermediate.dense",
    "blocks.{}.ff.down": "encoder.layer.{}.output.dense",
    "blocks.{}.ff_residual.norm": "encoder.layer.{}.output.LayerNorm",
}


def config(config: ModelConfig) -> dict[str, Any]:
    """What config.json says of the shape."""
    return {
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.ff_width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "hidden_act": ACTIVATIONS[config.activation],
        "max_position_embeddings": config.context,
        "type_vocab_size": 1,
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
    }


def tensors(model: Transformer) -> dict[str, Tensor]:
    """The weights by their names."""
    width = model.config.d_model
    return {
        **{renamed(name, MODULES): weight for name, weight in with_biases(model).items()},
        "embeddings.token_type_embeddings.weight": torch.zeros(1, width),
        "pooler.dense.weight": torch.zeros(width, width),
        "pooler.dense.bias": torch.zeros(width),
    }
