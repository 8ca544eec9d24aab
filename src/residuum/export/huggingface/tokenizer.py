"""A tokenizer as the files that transformers reads: the same tokens for any text, with the separator before them."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from residuum.train.tokenizer import SEPARATOR, byte_level_alphabet
from residuum.train.tokenizer import Tokenizer as Ours


def tokenizer_files(ours: Ours, context: int, causal: bool) -> dict[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json: a text begins with the separator.

    A character that a char tokenizer does not know is refused there as here: there is no token for it.
    """
    inner = _inner(json.loads(ours.to_json()))
    separator = inner.id_to_token(ours.separator)
    end = inner.id_to_token(min(ours.ends))
    inner.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in dict.fromkeys((separator, end))]
    )
    inner.post_processor = processors.TemplateProcessing(
        single=f"{separator} $A", pair=f"{separator} $A {separator} $B", special_tokens=[(separator, ours.separator)]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": separator,
        "eos_token": end,
        "pad_token": separator,
        "split_special_tokens": True,  # the separator's name, should a text hold it, is text
        "clean_up_tokenization_spaces": False,
        "padding_side": "left" if causal else "right",
        "model_max_length": context,
    }
    return {"tokenizer.json": json.loads(inner.to_str()), "tokenizer_config.json": config}


def _inner(content: dict[str, Any]) -> Tokenizer:
    if content["type"] == "byte":
        return _bytes()
    if content["type"] == "char":
        return _characters(content["alphabet"])
    return Tokenizer.from_str(json.dumps(content["tokenizer"]))


def _bytes() -> Tokenizer:
    """Byte pairs of which none is merged."""
    inner = Tokenizer(models.BPE(vocab={**byte_level_alphabet(), SEPARATOR: 256}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def _characters(alphabet: str) -> Tokenizer:
    """Words of one character each."""
    vocab = {character: token for token, character in enumerate(alphabet)}
    inner = Tokenizer(models.WordLevel(vocab={**vocab, SEPARATOR: len(alphabet)}))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return inner
