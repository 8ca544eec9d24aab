"""The config.json of a `BitNetForCausalLM` as a shape of ours, and how it says that the weights are written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from residuum.errors import InputError
from residuum.export.huggingface import llama
from residuum.export.huggingface.source import CONFIG, Source, shown
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
    "hidden_act": "relu2",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
"""What goes for a name that the file lacks, or has as null."""

KV_HEADS = 5
"""What goes where the file lacks num_key_value_heads; as null it is one for each query head."""

TINY = 2.0**-126
"""float32 has no smaller number, to its full precision."""

MOST = {"vocab_size": 10_000_000, "max_position_embeddings": 2**24}

QUANTIZATION: dict[str, tuple[Any, ...]] = {
    "linear_class": ("bitlinear", "autobitlinear"),
    "quantization_mode": ("offline", "online"),
    "use_rms_norm": (False, None),
    "modules_to_not_convert": (None, ["lm_head"]),
}
"""What can be said of how the weights are written; the first is what goes where nothing is. An empty list of what is
not converted would round the head, too."""


def model_config(source: Source) -> ModelConfig:
    """The shape that config.json says. Raises `InputError`, in the file's own words, for what no shape of ours is."""
    file = source.path / CONFIG
    content = {**DEFAULTS, **{name: value for name, value in source.config.items() if value is not None}}
    content["num_key_value_heads"] = source.config.get("num_key_value_heads", KV_HEADS)
    if "auto_map" in content and content.get("model_type") != "bitnet":
        raise InputError(f"{file} asks for code of its own, which is not run: take auto_map away if it needs none")
    said = {"architectures": ["BitNetForCausalLM"], "model_type": None, **content}
    for name, ours in (("architectures", ["BitNetForCausalLM"]), ("model_type", "bitnet")):
        if said[name] != ours:
            raise InputError(f"{file}: {name} = {shown(said[name])}: only {shown(ours)} can be imported")
    form_of(content, file)
    gates: dict[Any, Any] = {**{theirs: ours for ours, theirs in llama.GATES.items()}, "swish": "swiglu"}
    if not isinstance(gate := content["hidden_act"], str) or gate not in gates:
        raise InputError(f"{file}: hidden_act = {shown(gate)}: only {' or '.join(gates)} can be imported")
    if content.get("attention_bias", False) is not False:
        raise InputError(f"{file}: attention_bias = {shown(content['attention_bias'])}: only false can be imported")
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
            f"{file}: head_dim = {shown(content['head_dim'])} is not hidden_size / num_attention_heads = "
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
    for name, choices in QUANTIZATION.items():
        if (value := said.get(name, choices[0])) not in choices:
            raise InputError(f"{file}: {name} = {shown(value)}: only {_choices(choices)} can be imported")
    if said.get("linear_class", "bitlinear") == "bitlinear":
        return "bitlinear"
    return "online" if said.get("quantization_mode") == "online" else "offline"


def _count(content: dict[str, Any], name: str, file: Path) -> int | None:
    if name not in content:
        raise InputError(f"{file} lacks {name}: write it anew with save_pretrained")
    value = content[name]
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= MOST.get(name, value):
        bound = f" to {MOST[name]:,}" if name in MOST else ""
        raise InputError(f"{file}: {name} = {shown(value)}: only a whole number from 1{bound} can be imported")
    return value


def _size(content: dict[str, Any], name: str, file: Path) -> float:
    value = content[name]
    if type(value) not in (int, float) or not TINY <= value <= 1 / TINY:
        raise InputError(f"{file}: {name} = {shown(value)}: only a number above 0 can be imported")
    return float(value)


def _yes(content: dict[str, Any], name: str, file: Path) -> bool:
    value = content[name]
    if type(value) is not bool:
        raise InputError(f"{file}: {name} = {shown(value)}: only true or false can be imported")
    return value


def _rotary_base(content: dict[str, Any], file: Path) -> float:
    name = "rope_scaling" if content.get("rope_scaling") else "rope_parameters"  # transformers 5 asks in this order
    rotary = content.get(name) or {}
    if not isinstance(rotary, dict):
        raise InputError(f"{file}: {name} = {shown(rotary)} is no table: write it anew with save_pretrained")
    for key in ("rope_type", "type"):
        if rotary.get(key, "default") != "default":
            raise InputError(f"{file}: {name} has {key} = {shown(rotary[key])}: only default can be imported")
    if (part := rotary.get("partial_rotary_factor")) not in (None, 1):
        raise InputError(f"{file}: {name} has partial_rotary_factor = {shown(part)}: only 1 can be imported")
    return _size({**content, **{key: value for key, value in rotary.items() if value is not None}}, "rope_theta", file)


def _in_their_words(text: str) -> str:
    for theirs, ours in COUNTS.items():
        text = re.sub(rf"\bmodel\.{ours}\b", theirs, text)
    return text.replace("model.positions = 'rotary' turns", "rotary positions turn")


def _choices(choices: tuple[Any, ...]) -> str:
    return " or ".join(map(shown, choices))
