"""The weights and the tokenizer of a folder with a `BitNetForCausalLM`, as a model and a tokenizer of ours."""

from __future__ import annotations

import re
from typing import Any

import tokenizers
import torch
from torch import Tensor

from residuum.errors import InputError
from residuum.export.huggingface import bitnet
from residuum.export.huggingface.config import Form, form_of
from residuum.export.huggingface.names import renamed
from residuum.export.huggingface.source import CONFIG, Source, shown
from residuum.model import ModelConfig, Transformer
from residuum.model.linear import BitLinear
from residuum.model.quantise import LEAST
from residuum.packed.reference import unpacked
from residuum.train.tokenizer import ImportedTokenizer

TOKENIZER = "tokenizer.json"


def read_model(source: Source, config: ModelConfig) -> Transformer:
    """The model with the folder's weights, in float32. Raises `InputError` where one is missing or another's."""
    form = form_of(source.config, source.path / CONFIG)
    _check_size(source, config)
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
        # transformers 5 ties them only if they are alike, earlier ones whatever they are
        if config.head == "tied" and "lm_head.weight" in source.weights:
            _check_shape(source, "lm_head.weight", tuple(model.embedding.weight.shape), "online")
            if not torch.equal(source.tensor("lm_head.weight").float(), model.embedding.weight):
                raise InputError(
                    f"{source.weights['lm_head.weight']}: lm_head.weight is not the embedding, and by {CONFIG} "
                    "(tie_word_embeddings) it is: mend either"
                )
    return model.eval()


def read_tokenizer(source: Source) -> ImportedTokenizer:
    """The folder's own, with the marks that its configs name as the beginning and the end of a text."""
    file, vocab_size = source.path / TOKENIZER, source.config["vocab_size"]
    generation = source.path / "generation_config.json"
    said = {**source.config, **(source.table(generation.name) if generation.exists() else {})}
    begin, end = said.get("bos_token_id"), said.get("eos_token_id")
    ends: list[Any] = end if isinstance(end, list) else [begin if end is None else end]
    separator: Any = ends[0] if begin is None and ends else begin
    written = source.read(TOKENIZER)
    try:
        inner = tokenizers.Tokenizer.from_str(written.decode())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the tokenizers package raises bare Exception, and where it panics not even that
        raise InputError(f"{file} is no tokenizer ({error}): write it anew with tokenizer.save_pretrained") from error
    for token in (separator, *ends):
        if type(token) is not int or not 0 <= token < vocab_size or inner.id_to_token(token) is None:
            raise InputError(
                f"{source.path}: bos_token_id or eos_token_id is {shown(token)}, which is no token: mend its configs"
            )
    if (highest := max(inner.get_vocab().values())) >= vocab_size:
        raise InputError(f"{file} has the token {highest}, but the model's vocab_size is {vocab_size}: mend either")
    return ImportedTokenizer(inner, vocab_size, separator, ends)


def _check_size(source: Source, config: ModelConfig) -> None:
    """Before a model of that size is made, if only in outline."""
    layers = {int(found[1]) for name in source.weights if (found := re.match(r"model\.layers\.(\d{1,9})\.", name))}
    if lacking := [layer for layer in range(min(config.n_layers, len(layers) + 1)) if layer not in layers]:
        raise InputError(
            f"{source.path} lacks the weights of layer {lacking[0]}, and by {CONFIG} num_hidden_layers is "
            f"{config.n_layers}: mend either"
        )
    if (embedding := "model.embed_tokens.weight") not in source.weights:
        raise InputError(f"{source.path} lacks the weight {embedding}: write it anew with save_pretrained")
    _check_shape(source, embedding, (config.vocab_size, config.d_model), "online")


def _check_names(source: Source, expected: set[str], config: ModelConfig) -> None:
    found = {name for name in source.weights if not name.endswith("rotary_emb.inv_freq")}  # computed, not learned
    if config.head == "tied":
        found.discard("lm_head.weight")
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
