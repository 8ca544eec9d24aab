"""Which class of transformers computes exactly what a model of ours does, and where none does, why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from residuum.errors import InputError
from residuum.export.huggingface import bert, bitnet, gpt2, llama
from residuum.model import ModelConfig, Transformer

ANY = (
    "vocab_size", "context", "d_model", "n_layers", "n_heads", "d_ff", "norm_eps", "rotary_base",
    "experts_per_token", "balance", "dropout", "init_std", "branch_init",
)  # fmt: skip
"""Fields that every class can hold, or that change nothing in a trained model of one feed-forward a block."""

GQA = ("n_kv_heads",)
DECODER: dict[str, tuple[Any, ...]] = {"residual": ("pre",), "causal": (True,), "head": ("tied", "untied")}
ROTARY: dict[str, tuple[Any, ...]] = {
    **DECODER,
    "norm": ("rmsnorm",),
    "positions": ("rotary",),
    "activation": tuple(llama.GATES),
}


@dataclass(frozen=True)
class Shape:
    """A class of transformers: what it can hold of `ModelConfig`, its config.json, and its names for our numbers.

    A field that stands neither in `ANY` nor in `may` nor in `only` may be at its default alone.
    """

    name: str
    only: dict[str, tuple[Any, ...]]
    config: Callable[[ModelConfig], dict[str, Any]]
    tensors: Callable[[Transformer], dict[str, Tensor]]
    may: tuple[str, ...] = ()

    def lacks(self, config: ModelConfig) -> dict[str, str]:
        """The fields of `config` that it cannot hold, and what it can."""
        found = {}
        for field in dataclasses.fields(config):
            allowed = self.only.get(field.name, (field.default,))
            value = getattr(config, field.name)
            if field.name == "n_kv_heads" and value == config.n_heads:
                continue
            if field.name not in ANY + self.may and value not in allowed:
                found[field.name] = " or ".join(map(_shown, allowed))
        return found


SHAPES = (
    Shape(
        "BitNetForCausalLM",
        {**ROTARY, "linear": ("ternary",), "sub_norm": (True,), "bias": (False,)},
        bitnet.config,
        bitnet.tensors,
        GQA,
    ),
    Shape("LlamaForCausalLM", ROTARY, llama.config, llama.tensors, (*GQA, "sub_norm", "bias")),
    Shape(
        "GPT2LMHeadModel",
        {**DECODER, "positions": ("learned", "sinusoidal"), "activation": tuple(gpt2.ACTIVATIONS)},
        gpt2.config,
        gpt2.tensors,
        ("sub_norm", "bias"),
    ),
    Shape(
        "BertModel",
        {
            "residual": ("post",),
            "embedding_norm": (True,),
            "causal": (False,),
            "head": ("none",),
            "positions": ("learned", "sinusoidal"),
            "activation": tuple(gpt2.ACTIVATIONS),
        },
        bert.config,
        bert.tensors,
        ("sub_norm", "bias"),
    ),
)


def shape_of(config: ModelConfig) -> Shape:
    """The class that computes what `config` says. Raises `InputError`, which names the nearest one, if there is none.

    Where a run was trained in another shape there is no mending it: the line says in which one to train the next.
    """
    lacking = {shape.name: shape.lacks(config) for shape in SHAPES}
    able = [shape for shape in SHAPES if shape.name in _of_its_kind(config)]
    nearest = min(able, key=lambda shape: len(lacking[shape.name]))
    lacks = lacking[nearest.name]
    if lacks:
        there = " and ".join(f"model.{name} = {_shown(getattr(config, name))}" for name in lacks)
        wanted = ", ".join(f"model.{name} = {allowed}" for name, allowed in lacks.items())
        raise InputError(
            f"transformers has no class with {there}: the nearest, {nearest.name}, is what a run with {wanted} "
            "can be written as"
        )
    if nearest.name == "BitNetForCausalLM":
        bitnet.check(config)
    return nearest


def _of_its_kind(config: ModelConfig) -> tuple[str, ...]:
    """The classes among which the nearest is looked for: nobody gives up ternary weights for the sake of a norm."""
    if config.linear == "ternary":
        return ("BitNetForCausalLM",)
    return ("LlamaForCausalLM", "GPT2LMHeadModel") if config.causal else ("BertModel",)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str) else "model.n_heads" if value is None else str(value)
