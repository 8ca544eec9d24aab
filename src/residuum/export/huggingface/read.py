"""What a folder with a `BitNetForCausalLM` says, as a model and a tokenizer of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
from torch import Tensor

from residuum.errors import InputError
from residuum.export.huggingface import bitnet, llama
from residuum.export.huggingface.names import renamed
from residuum.export.huggingface.source import CONFIG, Source
from residuum.model import ModelConfig, Transformer
from residuum.model.linear import BitLinear
from residuum.model.quantise import LEAST
from residuum.packed.reference import unpacked
from residuum.train.tokenizer import ImportedTokenizer

TOKENIZER = "tokenizer.json"

Form = Literal["bitlinear", "offline", "online"]
"""How the ternary maps are written, each for a class of transformers: packed, with 1 / the size of a level; packed or
as levels, with the size; or as they are trained."""


def model_config(source: Source) -> ModelConfig:
    """The shape that config.json says. Raises `InputError` for what no shape of ours computes."""
    try:
        return _model_config(source.config, source.path / CONFIG)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{source.path / CONFIG} cannot be read: {type(error).__name__}: {error}: write it anew with "
            "save_pretrained"
        ) from error


def _model_config(content: dict[str, Any], file: Path) -> ModelConfig:
    if "auto_map" in content and content.get("model_type") != "bitnet":
        raise InputError(f"{file} asks for code of its own, which is not run: take auto_map away if it needs none")
    named = content.get("architectures") or ["BitNetForCausalLM"]
    if content.get("model_type") != "bitnet" or named != ["BitNetForCausalLM"]:
        what = content.get("model_type") if named == ["BitNetForCausalLM"] else named[0]
        raise InputError(f"{file} is of a {what}: only a BitNetForCausalLM can be imported")
    form_of(content, file)
    gates = {theirs: ours for ours, theirs in llama.GATES.items()}
    if (gate := content.get("hidden_act", "relu2")) not in gates:
        raise InputError(f"{file}: hidden_act = {gate!r}: only {' or '.join(gates)} can be imported")
    if content.get("attention_bias"):
        raise InputError(f"{file}: attention_bias = true: only a model without biases can be imported")
    try:
        config = ModelConfig(
            vocab_size=content["vocab_size"],
            context=content.get("max_position_embeddings", 2048),
            d_model=content["hidden_size"],
            n_layers=content["num_hidden_layers"],
            n_heads=content["num_attention_heads"],
            n_kv_heads=content.get("num_key_value_heads"),
            d_ff=content["intermediate_size"],
            activation=gates[gate],  # type: ignore[arg-type]
            linear="ternary",
            norm="rmsnorm",
            norm_eps=content.get("rms_norm_eps", 1e-5),
            positions="rotary",
            rotary_base=_rotary_base(content, file),
            head="tied" if content.get("tie_word_embeddings", False) else "untied",
        )
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    if content.get("head_dim") not in (None, config.d_head):
        raise InputError(
            f"{file}: head_dim = {content['head_dim']} is not hidden_size / num_attention_heads = {config.d_head}: "
            "only a model where it is can be imported"
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
    if set(said.get("modules_to_not_convert") or ()) - {"lm_head"}:
        raise InputError(f"{file}: modules_to_not_convert holds more than lm_head: only that can be imported")
    if said.get("linear_class", "bitlinear") == "bitlinear":
        return "bitlinear"
    return "online" if said.get("quantization_mode") == "online" else "offline"


def read_model(source: Source, config: ModelConfig) -> Transformer:
    """The model with the folder's weights, in float32. Raises `InputError` where one is missing or another's."""
    form = form_of(source.config, source.path / CONFIG)
    with torch.device("meta"):
        shapes = Transformer(config)
    names = {name: renamed(name, bitnet.MODULES) for name, _ in shapes.named_parameters()}
    written = (
        set()
        if form == "online"
        else {f"{name}.weight" for name, module in shapes.named_modules() if isinstance(module, BitLinear)}
    )
    _check_names(source, {*names.values(), *(f"{names[name]}_scale" for name in written)}, config)
    for name, parameter in shapes.named_parameters():
        _check_shape(source, names[name], tuple(parameter.shape), form if name in written else "online")
        if name in written:
            _check_shape(source, f"{names[name]}_scale", (1,), "online")
    model = Transformer(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            weight = source.tensor(names[name])
            if name in written:
                scale = source.tensor(f"{names[name]}_scale").float()
                size = float(1 / scale if form == "bitlinear" else scale)
                weight = _latent(weight, size, f"{source.weights[names[name]]}: {names[name]}")
            if not weight.isfinite().all():
                raise InputError(f"{source.weights[names[name]]}: {names[name]} is not finite: write it anew")
            parameter.copy_(weight)
    return model.eval()


def read_tokenizer(source: Source) -> ImportedTokenizer:
    """The folder's own, with the marks that its configs name as the beginning and the end of a text."""
    file, vocab_size = source.path / TOKENIZER, source.config["vocab_size"]
    generation = source.path / "generation_config.json"
    said = {**source.config, **(source.table(generation.name) if generation.is_file() else {})}
    begin, end = said.get("bos_token_id"), said.get("eos_token_id")
    ends: list[Any] = end if isinstance(end, list) else [begin if end is None else end]
    separator: Any = ends[0] if begin is None and ends else begin
    try:
        inner = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{source.path} holds no {TOKENIZER}: write it there with tokenizer.save_pretrained") from None
    except Exception as error:  # the tokenizers package raises bare Exception
        raise InputError(f"{file} is no tokenizer ({error}): write it anew with tokenizer.save_pretrained") from error
    for token in (separator, *ends):
        if type(token) is not int or not 0 <= token < vocab_size or inner.id_to_token(token) is None:
            raise InputError(
                f"{source.path}: bos_token_id or eos_token_id is {token}, which is no token: mend its configs"
            )
    if (highest := max(inner.get_vocab().values())) >= vocab_size:
        raise InputError(f"{file} has the token {highest}, but the model's vocab_size is {vocab_size}: mend either")
    return ImportedTokenizer(inner, vocab_size, separator, ends)


def _rotary_base(content: dict[str, Any], file: Path) -> float:
    rotary = content.get("rope_parameters") or content.get("rope_scaling") or {}
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind != "default" or rotary.get("partial_rotary_factor", 1) != 1:
        raise InputError(f"{file}: its rotary positions are scaled ({kind}): only plain ones can be imported")
    return float(rotary.get("rope_theta", content.get("rope_theta", 500000.0)))


def _check_names(source: Source, expected: set[str], config: ModelConfig) -> None:
    found = {name for name in source.weights if not name.endswith("rotary_emb.inv_freq")}  # computed, not learned
    if config.head == "tied":
        found.discard("lm_head.weight")  # the embedding's, whatever it says
    if missing := expected - found:
        raise InputError(f"{source.path} lacks the weight {min(missing)}: write it anew with save_pretrained")
    if foreign := found - expected:
        name = min(foreign)
        raise InputError(f"{source.weights[name]} has {name}, which its {CONFIG} leaves no place for: mend either")


def _check_shape(source: Source, name: str, wanted: tuple[int, ...], form: Form) -> None:
    kind, shape = source.shape(name)
    floats = ("F64", "F32", "F16", "BF16")
    packed = ("U8", (wanted[0] / bitnet.PER_BYTE, *wanted[1:]))
    if (form != "bitlinear" and kind in floats and shape == wanted) or (form != "online" and (kind, shape) == packed):
        return
    says = f"{floats[1]} {list(wanted)}" if form == "online" else f"U8 {[wanted[0] // bitnet.PER_BYTE, *wanted[1:]]}"
    raise InputError(f"{source.weights[name]}: {name} is {kind} {list(shape)}, and by {CONFIG} {says}: mend either")


def _latent(weight: Tensor, size: float, what: str) -> Tensor:
    """W that rounds to the written levels of the written size.

    `ternary` takes mean|W| for the size, so W = levels · size / p, with p the share of levels that are not 0; as p ≤ 1,
    each entry rounds back to its level.
    """
    levels = weight.float() if weight.is_floating_point() else torch.from_numpy(unpacked(weight.numpy())).float()
    if not ((levels == -1) | (levels == 0) | (levels == 1)).all():
        raise InputError(f"{what} holds more than −1, 0 and 1: write it anew")
    nonzero = int(levels.count_nonzero())
    if nonzero and not LEAST <= size < float("inf"):
        raise InputError(f"{what}_scale makes a level {size:g}: only {LEAST:g} or more can be imported")
    return levels * (size * levels.numel() / nonzero) if nonzero else levels
