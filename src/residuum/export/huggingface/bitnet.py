"""`BitNetForCausalLM`: Llama's shape with ternary maps, and an rms norm before a branch's last.

Four weights of a column share a byte: byte row r holds weight row i · rows/4 + r in bits 2i and 2i + 1, as its level
plus one. Of the two classes of linear map that read it, `BitLinear` multiplies whole numbers and then divides by
`weight_scale`, which is 1 over the size of one level: that is our product, and what is written here. `AutoBitLinear`
multiplies numbers that are whole no more, and then by the size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residuum.errors import InputError
from residuum.export.huggingface import llama
from residuum.export.huggingface.names import renamed, weights
from residuum.model import ModelConfig, Transformer
from residuum.model.linear import BitLinear
from residuum.model.quantise import ternary
from residuum.packed.weights import fields

PER_BYTE = 4

MODULES = {
    **llama.MODULES,
    "blocks.{}.attn.out.norm": "model.layers.{}.self_attn.attn_sub_norm",
    "blocks.{}.ff.down.norm": "model.layers.{}.mlp.ffn_sub_norm",
}


def config(config: ModelConfig) -> dict[str, Any]:
    """What config.json says of the shape and of how the weights are written."""
    shape = {key: value for key, value in llama.config(config).items() if key != "mlp_bias"}
    quantised = {
        "quant_method": "bitnet",
        "linear_class": "bitlinear",
        "quantization_mode": "offline",
        "modules_to_not_convert": ["lm_head"],
    }
    return {**shape, "model_type": "bitnet", "quantization_config": quantised}


def check(config: ModelConfig) -> None:
    """Raises `InputError` where a map's rows do not fill their bytes."""
    rows = {
        "model.d_model": config.d_model,
        "model.n_kv_heads · d_head": config.kv_heads * config.d_head,
        "model.d_ff": config.ff_width,
    }
    for name, count in rows.items():
        if count % PER_BYTE:
            raise InputError(
                f"{name} = {count} is no multiple of {PER_BYTE}, and BitNetForCausalLM has {PER_BYTE} rows of a "
                "ternary map in a byte: a run where it is one can be written"
            )


def tensors(model: Transformer) -> dict[str, Tensor]:
    """The weights by their names: ternary ones packed, each with its `weight_scale`."""
    maps = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, BitLinear)}
    found = {}
    for name, weight in weights(model).items():
        theirs = renamed(name, MODULES)
        if name in maps:
            levels, step = ternary(weight)
            found[theirs] = torch.from_numpy(fields(levels.to("cpu", torch.int8).numpy()))
            found[f"{theirs}_scale"] = (1 / step).reshape(1)
        else:
            found[theirs] = weight
    return found
