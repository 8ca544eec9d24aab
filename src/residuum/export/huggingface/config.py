"""The config.json of a `BitNetForCausalLM` as a shape of ours, and how it says that the weights are written."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal

from residuum.errors import InputError
from residuum.export.huggingface import llama
from residuum.export.huggingface.source import CONFIG, Source
from residuum.model import ModelConfig

Form = Literal["bitlinear", "offline", "online"]
"""How the ternary maps are written, each for a class of transformers: packed, with 1 / the size of a level; packed or
as levels, with the size; or as they are trained."""

COUNTS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context",
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "intermediate_size": "d_ff",
}
"""Their names for ours."""

DEFAULTS = {
    "max_position_embeddings": 2048,
    "num_key_value_heads": None,
    "hidden_act": "relu2",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
"""What goes for a name that the file lacks, or has as null."""
LONGEST = 2**24
"""Tokens of context for which a table of positions is made."""


def model_config(source: Source) -> ModelConfig:
    """The shape that config.json says. Raises `InputError`, in the file's own words, for what no shape of ours is."""
    file = source.path / CONFIG
    content = {**DEFAULTS, **{name: value for name, value in source.config.items() if value is not None}}
    if "auto_map" in content and content.get("model_type") != "bitnet":
        raise InputError(f"{file} asks for code of its own, which is not run: take auto_map away if it needs none")
    named = content.get("architectures") or ["BitNetForCausalLM"]
    if content.get("model_type") != "bitnet" or named != ["BitNetForCausalLM"]:
        what = content.get("model_type") if named == ["BitNetForCausalLM"] else named
        shown = what[0] if isinstance(what, list) and what else what
        raise InputError(f"{file} is of a {shown or 'model without a name'}: only a BitNetForCausalLM can be imported")
    form_of(content, file)
    gates: dict[Any, Any] = {theirs: ours for ours, theirs in llama.GATES.items()}
    if not isinstance(gate := content["hidden_act"], str) or gate not in gates:
        raise InputError(f"{file}: hidden_act = {_shown(gate)}: only {' or '.join(gates)} can be imported")
    if content.get("attention_bias"):
        raise InputError(f"{file}: attention_bias = true: only a model without biases can be imported")
    values: dict[str, Any] = {ours: _count(content, theirs, file) for theirs, ours in COUNTS.items()}
    values["norm_eps"] = _size(content, "rms_norm_eps", file)
    values["rotary_base"] = _rotary_base(content, file)
    values["head"] = "tied" if _yes(content, "tie_word_embeddings", file) else "untied"
    try:
        config = ModelConfig(**values, activation=gates[gate], linear="ternary", norm="rmsnorm", positions="rotary")
    except InputError as error:
        raise InputError(f"{file}: {_in_their_words(str(error))}") from None
    if content.get("head_dim", config.d_head) != config.d_head:
        raise InputError(
            f"{file}: head_dim = {_shown(content['head_dim'])} is not hidden_size / num_attention_heads = "
            f"{config.d_head}: only a model where it is can be imported"
        )
    return config


def form_of(content: dict[str, Any], file: Path) -> Form:
    """How config.json says that the ternary maps are written. Raises `InputError` where it says something else."""
    said = content.get("quantization_config")
    if not isinstance(said, dict) or said.get("quant_method") != "bitnet":
        raise InputError(
            f"{file} has no quantization_config of bitnet, so transformers rounds nothing: where these weights are to "
            "be rounded, write quant_method = bitnet, linear_class = autobitlinear, quantization_mode = online into it"
        )
    if said.get("use_rms_norm"):
        raise InputError(f"{file}: use_rms_norm = true has a norm before each map: only false can be imported")
    kept = said.get("modules_to_not_convert") or []
    if not isinstance(kept, list) or [name for name in kept if name != "lm_head"]:
        raise InputError(f"{file}: modules_to_not_convert = {_shown(kept)}: only lm_head alone can be imported")
    if said.get("linear_class", "bitlinear") == "bitlinear":
        return "bitlinear"
    return "online" if said.get("quantization_mode") == "online" else "offline"


def _count(content: dict[str, Any], name: str, file: Path) -> int | None:
    if name not in content:
        raise InputError(f"{file} lacks {name}: write it anew with save_pretrained")
    value = content[name]
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise InputError(f"{file}: {name} = {_shown(value)}: only a whole number from 1 can be imported")
    if name == "max_position_embeddings" and value > LONGEST:
        raise InputError(f"{file}: {name} = {value}: at most {LONGEST:,} can be imported; mend it, or write less")
    return value


def _size(content: dict[str, Any], name: str, file: Path) -> float:
    value = content[name]
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise InputError(f"{file}: {name} = {_shown(value)}: only a number above 0 can be imported")
    return float(value)


def _yes(content: dict[str, Any], name: str, file: Path) -> bool:
    value = content[name]
    if type(value) is not bool:
        raise InputError(f"{file}: {name} = {_shown(value)}: only true or false can be imported")
    return value


def _rotary_base(content: dict[str, Any], file: Path) -> float:
    said: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):  # as transformers 4 and 5 call it
        rotary = content.get(name) or {}
        if not isinstance(rotary, dict):
            raise InputError(f"{file}: {name} = {_shown(rotary)} is no table: write it anew with save_pretrained")
        kind = rotary.get("rope_type", rotary.get("type", "default"))
        if kind != "default" or rotary.get("partial_rotary_factor", 1) != 1:
            raise InputError(
                f"{file}: {name} scales rotary positions ({_shown(kind)}): only plain ones can be imported"
            )
        said |= rotary
    return _size({**content, **said}, "rope_theta", file)


def _in_their_words(text: str) -> str:
    for theirs, ours in COUNTS.items():
        text = re.sub(rf"\bmodel\.{ours}\b", theirs, text)
    return text.replace("model.positions = 'rotary' turns", "rotary positions turn")


def _shown(value: Any) -> str:
    """As JSON has it, or near."""
    text = {True: "true", False: "false", None: "null"}.get(value) if isinstance(value, bool | None) else None
    return text or (value if isinstance(value, str) else repr(value))[:60]
