"""A small model of any architecture of transformers: its default config with few layers and small sizes."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import torch
from torch import nn

from residuum.audit.targets.inputs import Inputs, describe, make_inputs
from residuum.audit.targets.shrink import smaller

LARGEST = 60_000_000


# What a default config leaves open, or has in a form that its own model refuses: the values of a published model.
OPEN: dict[str, dict[str, Any]] = {
    "convnext": {"hidden_sizes": [96, 192, 384, 768]},
    "convnextv2": {"hidden_sizes": [96, 192, 384, 768]},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "focalnet": {"hidden_sizes": [192, 384, 768, 768]},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "reformer": {"is_decoder": True},
    "wav2vec2-bert": {"vocab_size": 32},
    "wav2vec2-conformer": {"vocab_size": 32},
    "xmod": {"default_language": "en_XX"},
}


class CannotRun(Exception):
    """Why no small model of this architecture ran."""


def small_model(cls: Any, config: Any = None, layers: int = 4) -> tuple[nn.Module, Inputs, list[str]]:
    """A model of `cls` that runs, inputs for it, and what was changed. Raises `CannotRun` with the first reason."""
    given = OPEN.get(cls.config_class.model_type, {}) if config is None else None
    config = cls.config_class(**(given or {})) if config is None else config
    reasons: list[str] = []
    for cut in dict.fromkeys((enough(config, layers), 2 * layers, 3 * layers)):
        try:
            shorter = few_layers(config, cut, given)
        except Exception as error:
            reasons.append(f"{type(error).__name__}: {error}")
            continue
        for shrunk, changed in smaller(shorter):
            try:
                with torch.device("meta"):
                    size = sum(parameter.numel() for parameter in cls(copy.deepcopy(shrunk)).parameters())
                if size > LARGEST:
                    reasons.append(f"{size:,} parameters are too many to try")
                    continue
            except Exception:  # not every model can be built without values; then its size is unknown
                pass
            try:
                torch.manual_seed(0)
                model = cls(shrunk).eval()
                for inputs in make_inputs(model):
                    try:
                        with torch.no_grad(), warnings.catch_warnings():
                            warnings.simplefilter("ignore")
                            model(**inputs)
                        return model, inputs, [f"layers cut to {cut}", changed, describe(inputs)]
                    except Exception as error:
                        reasons.append(f"{type(error).__name__}: {error}")
            except Exception as error:
                reasons.append(f"{type(error).__name__}: {error}")
    raise CannotRun(" | ".join(dict.fromkeys(reason[:200] for reason in reasons)))


def enough(config: Any, layers: int) -> int:
    """`layers`, or more where it takes more to have one of each kind of layer that the config lists."""
    kinds = [value for value in _values(config) if isinstance(value, (list, tuple)) and value]
    lists = [value for value in kinds if all(isinstance(each, str) for each in value) and len(value) > layers]
    needed = [max(value.index(kind) for kind in set(value)) + 1 for value in lists if len(set(value)) < len(value)]
    return max([layers, *(number for number in needed if number <= 4 * layers)])


def _values(config: Any) -> list[Any]:
    own = [value for name, value in vars(config).items() if not name.startswith("_")]
    own += [getattr(config, name, None) for name in ("layers_block_type", "layer_types")]
    return own + [inner for value in own if hasattr(value, "model_type") for inner in _values(value)]


def few_layers(config: Any, cut: int, given: dict[str, Any] | None) -> Any:
    """The config with at most `cut` layers.

    One that was made of `given` values is made anew, so that whatever follows from the depth follows it here too.
    """
    changes = _changes(config, cut)
    if given is not None:
        try:
            return type(config)(**{**given, **changes})
        except Exception:  # not every config accepts every depth; then what follows from it is cut as well
            pass
    copied = copy.deepcopy(config)
    _apply(copied, changes)
    return copied


def _changes(config: Any, cut: int) -> dict[str, Any]:
    fields = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    depths = {value for name, value in fields.items() if COUNT.search(name) and type(value) is int and value > cut}
    changes: dict[str, Any] = {}
    for name, value in fields.items():
        if hasattr(value, "model_type"):
            inner = _changes(value, cut)
            if inner or type(config).sub_configs:
                changes[name] = {**({"model_type": value.model_type} if value.model_type else {}), **inner}
        elif type(value) is int and COUNT.search(name):
            new = cut // 2 if "shared" in name or "nextn" in name else cut
            if value > new:
                changes[name] = new
        elif isinstance(value, (list, tuple)) and value:
            if STAGES.search(name) and all(type(each) is int for each in value):
                changes[name] = type(value)(min(each, cut // 2) for each in value)
            elif len(value) in depths:
                changes[name] = value[:cut]
            elif PLACES.search(name) and depths and all(type(each) is int for each in value):
                changes[name] = type(value)(each for each in value if each < cut)
    return changes


def _apply(config: Any, changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        old = getattr(config, name)
        if hasattr(old, "model_type") and isinstance(value, dict):
            _apply(old, {k: v for k, v in value.items() if k != "model_type"})
        else:
            setattr(config, name, value)


COUNT = re.compile(r"^(?!.*(feat_extract|postnet|prenet|first|last|every|per)).*layers?$|^num_hidden_groups$")
STAGES = re.compile(r"^depths?$|num_blocks$|numb_of_layers$|block_sizes$|^(num_)?block_repeats$|layer_depths$")
PLACES = re.compile(r"(idxs|layer_ids|indexes|_layers)$")
