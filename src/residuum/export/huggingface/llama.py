"""`LlamaForCausalLM`: rms norms, rotary positions, a gated feed-forward; with or without biases."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from residuum.export.huggingface.names import renamed, weights
from residuum.model import ModelConfig, Transformer

GATES = {"swiglu": "silu", "squared_reglu": "relu2"}
"""Their names of the non-linearity of the gate."""

MODULES = {
    "embedding": "model.embed_tokens",
    "blocks.{}.attn_residual.norm": "model.layers.{}.input_layernorm",
    "blocks.{}.attn.q": "model.layers.{}.self_attn.q_proj",
    "blocks.{}.attn.k": "model.layers.{}.self_attn.k_proj",
    "blocks.{}.attn.v": "model.layers.{}.self_attn.v_proj",
    "blocks.{}.attn.out": "model.layers.{}.self_attn.o_proj",
    "blocks.{}.ff_residual.norm": "model.layers.{}.post_attention_layernorm",
    "blocks.{}.ff.gate": "model.layers.{}.mlp.gate_proj",
    "blocks.{}.ff.up": "model.layers.{}.mlp.up_proj",
    "blocks.{}.ff.down": "model.layers.{}.mlp.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}


def config(config: ModelConfig) -> dict[str, Any]:
    """What config.json says of the shape. Both classes turn entries i and i + d_head/2 as a pair, as we do."""
    return {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.ff_width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "hidden_act": GATES[config.activation],
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rotary_base,
        "tie_word_embeddings": config.head == "tied",
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
    }


def tensors(model: Transformer) -> dict[str, Tensor]:
    """The weights by their names."""
    return {renamed(name, MODULES): weight for name, weight in weights(model).items()}
