"""A trained ternary model as the arrays that a packed decoder reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residuum.errors import InputError
from residuum.model import Block, ModelConfig, Transformer
from residuum.model.linear import BitLinear
from residuum.model.quantise import ternary

Embedding = Literal["int8", "float"]
"""How the embedding, and the head, are kept: eight bits and a step for each row, or as they are."""

MATRICES = ("q", "k", "v", "out", "gate", "up", "down")

PRE_NORM = ("pre", "weighted", "completep", "residual-dropout", "stochastic-depth")
"""The residual connections that are, once trained, y = x + α f(norm(x)) with a fixed number α."""

MOST_COLUMNS = 2**19
"""An int32 sum of so many products could overflow."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A ternary decoder: its shape, and its arrays by the names of `layout`.

    A matrix [rows, columns] is padded with zero weights to a multiple of 4 rows and 64 columns. Byte row r of the
    uint8 [rows / 4, columns] that it becomes holds, in its bits 2i and 2i + 1, weight row i · (rows / 4) + r, each
    weight plus one.
    """

    config: ModelConfig
    arrays: dict[str, NDArray[Any]]

    @property
    def embedding(self) -> Embedding:
        return "int8" if self.arrays["embedding"].dtype == np.int8 else "float"

    def bits_per_weight(self) -> float:
        """Bits of memory for each ternary weight: padding and steps are counted, all that is not ternary is not."""
        return 8 * sum(self.arrays[name].nbytes for name in (*MATRICES, "step")) / n_ternary(self.config)


def layout(config: ModelConfig, embedding: Embedding) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of every array: of width or height 0 where this model has none, no head where it is tied.

    `step` holds what a weight of 1 is worth, α included, in the order of MATRICES.
    """
    layers, d, vocab, sub_norm = config.n_layers, config.d_model, config.vocab_size, config.sub_norm
    bits = np.dtype(np.uint8)
    matrices = {
        name: (bits, (layers, _up_to(4, rows) // 4, _up_to(64, columns)))
        for name, (rows, columns) in _shapes(config).items()
    }
    of_rows = np.dtype(np.int8 if embedding == "int8" else np.float32)
    tables = dict.fromkeys(("embedding", "head"), (of_rows, (vocab, d)))
    floats = {
        "step": (layers, len(MATRICES)),
        "embedding_step": (vocab,),
        "head_step": (vocab,),
        "positions": (config.context, 0 if config.positions == "rotary" else d),
        "attention_norm": (layers, d),
        "out_norm": (layers, d if sub_norm else 0),
        "feedforward_norm": (layers, d),
        "down_norm": (layers, config.ff_width if sub_norm else 0),
        "final_norm": (d,),
    }
    arrays = {**matrices, **tables, **{name: (np.dtype(np.float32), shape) for name, shape in floats.items()}}
    tied = ("head", "head_step") if config.head == "tied" else ()
    return {name: array for name, array in arrays.items() if name not in tied}


def n_ternary(config: ModelConfig) -> int:
    """How many ternary weights the model has."""
    return config.n_layers * sum(map(prod, _shapes(config).values()))


def check(config: ModelConfig) -> None:
    """Raises `InputError` if models of this shape cannot be packed."""
    fault = next(_faults(config), None)
    if fault is not None:
        raise InputError(
            f"{fault} cannot be packed: packed are ternary decoders of pre-norm connections with a head, without "
            "biases, experts and a norm of the embedding; use the run itself, without --packed, or export --to hf"
        )


def _faults(config: ModelConfig) -> Iterator[str]:
    if config.linear != "ternary":
        yield f"model.linear = '{config.linear}'"
    if config.residual not in PRE_NORM:
        yield f"model.residual = '{config.residual}'"
    if config.n_experts > 1:
        yield f"model.n_experts = {config.n_experts}"
    for name in ("bias", "embedding_norm"):
        if getattr(config, name):
            yield f"model.{name} = true"
    if not config.causal:
        yield "model.causal = false"
    if config.head == "none":
        yield "model.head = 'none'"
    if max(config.d_model, config.ff_width) >= MOST_COLUMNS:
        yield f"a width of {max(config.d_model, config.ff_width)} (from {MOST_COLUMNS} on)"


@torch.no_grad()
def pack(model: Transformer, embedding: Embedding = "int8") -> Packed:
    """What a packed decoder needs of a trained model. Raises `InputError` for a shape or for numbers it cannot take."""
    config = model.config
    check(config)
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InputError(f"{name} holds numbers that are not finite: pack a model that has not diverged")
    maps = [_maps(block) for block in model.blocks]
    arrays: dict[str, NDArray[Any]] = {}
    for name, (rows, columns) in _shapes(config).items():
        padded = np.zeros((config.n_layers, _up_to(4, rows), _up_to(64, columns)), np.int8)
        for layer, of_layer in enumerate(maps):
            if name in of_layer:
                padded[layer, :rows, :columns] = ternary(of_layer[name].weight)[0].to("cpu", torch.int8).numpy()
        arrays[name] = fields(padded)
    arrays["step"] = np.zeros((config.n_layers, len(MATRICES)), np.float32)
    for layer, (block, of_layer) in enumerate(zip(model.blocks, maps, strict=True)):
        for name, linear in of_layer.items():
            adds = {"out": block.attn_residual, "down": block.ff_residual}.get(name)
            arrays["step"][layer, MATRICES.index(name)] = ternary(linear.weight)[1].item() * getattr(adds, "scale", 1)
    arrays |= {
        "attention_norm": np.stack([_gain(block.attn_residual.norm) for block in model.blocks]),
        "out_norm": np.stack([_gain(of_layer["out"].norm) for of_layer in maps]),
        "feedforward_norm": np.stack([_gain(block.ff_residual.norm) for block in model.blocks]),
        "down_norm": np.stack([_gain(of_layer["down"].norm) for of_layer in maps]),
        "final_norm": _gain(model.final_norm),
    }
    arrays["embedding"], arrays["embedding_step"] = _rows(_float(model.embedding.weight), embedding)
    if config.head == "untied":
        assert model.head is not None
        arrays["head"], arrays["head_step"] = _rows(_float(model.head.weight), embedding)
    arrays["positions"] = np.zeros((config.context, 0), np.float32)
    if model.positions is not None:
        arrays["positions"] = _float(model.positions(0, config.context))
    return Packed(config, arrays)


def fields(weights: NDArray[np.int8]) -> NDArray[np.uint8]:
    """int8 [..., rows, columns] of −1, 0, 1, with rows a multiple of 4 → uint8 [..., rows / 4, columns]."""
    four = (weights + 1).astype(np.uint8).reshape(*weights.shape[:-2], 4, -1, weights.shape[-1])
    first, second, third, fourth = np.moveaxis(four, -3, 0)
    return first | second << 2 | third << 4 | fourth << 6


def _shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    d, kv, d_ff = config.d_model, config.kv_heads * config.d_head, config.ff_width
    gate = d_ff if config.gated else 0
    inner = {"q": d, "k": kv, "v": kv, "out": d, "gate": gate, "up": d_ff}
    return {name: (rows, d) for name, rows in inner.items()} | {"down": (d, d_ff)}


def _maps(block: Block) -> dict[str, BitLinear]:
    """Those of MATRICES that there are, by name."""
    parts = dict(block.attn.named_children()) | dict(block.ff.named_children())
    return {name: part for name, part in parts.items() if isinstance(part, BitLinear)}


def _gain(norm: Any) -> NDArray[np.float32]:
    return np.zeros(0, np.float32) if norm is None else _float(norm.gain)


def _rows(table: NDArray[np.float32], embedding: Embedding) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Each row as whole numbers up to 127, and what 1 is worth in it."""
    if embedding == "float":
        return table, np.ones(len(table), np.float32)
    step = np.maximum(np.abs(table).max(1), np.float32(1e-30)) / np.float32(127)
    return np.rint(table / step[:, None]).astype(np.int8), step


def _float(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous().numpy()


def _up_to(multiple: int, number: int) -> int:
    return -(-number // multiple) * multiple
