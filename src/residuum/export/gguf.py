"""A run as one GGUF file, which llama.cpp runs: ternary maps as TQ2_0 or TQ1_0, floating-point Llama shapes as F16.

What is written is what stock llama.cpp computes as the model does; all else is refused. A ternary model without
sub-norms has the architecture `llama`, one with them `bitnet`. There activations are rounded to eight bits in blocks of
256 entries, not token by token, so that scores are close and not equal.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from residuum.errors import InputError
from residuum.export.gguf_vocabulary import Vocabulary, vocabulary
from residuum.files import whole_file
from residuum.model import ModelConfig, Transformer
from residuum.model.feedforward import GatedFeedForward
from residuum.model.linear import BitLinear, Linear
from residuum.model.norm import RMSNorm
from residuum.model.quantise import ternary
from residuum.train.run_folder import RunFolder
from residuum.train.tokenizer import Tokenizer

Kind = Literal["tq2_0", "tq1_0", "f16"]

BLOCK = 256
"""Ternary weights that share a scale."""


def export(folder: RunFolder, out: Path, kind: Kind | None = None) -> str:
    """Write the newest checkpoint and the tokenizer to the file `out`, whole or not at all, and say what was written.

    `kind` is how the maps are stored: tq2_0 (2.06 bits a weight) or tq1_0 (1.69) for ternary ones, f16 for others;
    None takes tq2_0 or f16. Raises `InputError`, before anything is written, for what llama.cpp does not compute.
    """
    config = folder.recipe.model
    kind = kind or ("tq2_0" if config.linear == "ternary" else "f16")
    check(config, kind)
    gguf = _gguf()
    words = vocabulary(folder.tokenizer)
    model = folder.model()
    architecture = architecture_of(config)
    with whole_file(out) as part, closing(gguf.GGUFWriter(part, architecture)) as writer:
        writer.add_type("model")
        writer.add_name(folder.path.resolve().name)
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, config)
        _add_vocabulary(writer, words, folder.tokenizer, gguf)
        for name, values, stored in _tensors(model, kind):
            as_stored = gguf.GGMLQuantizationType[stored]
            writer.add_tensor(name, gguf.quants.quantize(values, as_stored), raw_dtype=as_stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    size = out.stat().st_size / 1e6
    return (
        f"wrote {out}: {kind.upper()}, architecture {architecture}, {size:.1f} MB; llama.cpp runs it: "
        f"llama-completion -no-cnv -m {out} -p TEXT"
    )


def architecture_of(config: ModelConfig) -> Literal["llama", "bitnet"]:
    """What llama.cpp calls this shape."""
    return "bitnet" if config.linear == "ternary" and config.sub_norm else "llama"


def check(config: ModelConfig, kind: Kind) -> None:
    """Raises `InputError` for what llama.cpp does not compute as we do, with the shape that it does."""
    is_ternary = config.linear == "ternary"
    if is_ternary == (kind == "f16"):
        raise _refused(
            f"model.linear = '{config.linear}' is not stored as {kind.upper()}",
            "choose " + ("tq2_0 or tq1_0" if is_ternary else "f16"),
        )
    if config.activation == "squared_reglu":
        raise _refused(
            "model.activation = 'squared_reglu' would be computed as swiglu, silently",
            "train with model.activation = 'swiglu', or export --to hf",
        )
    wanted: dict[str, object] = {
        "activation": "swiglu", "norm": "rmsnorm", "positions": "rotary", "residual": "pre", "n_experts": 1,
        "bias": False, "causal": True, "embedding_norm": False,
    }  # fmt: skip
    for name, value in wanted.items():
        if (found := getattr(config, name)) != value:
            raise _refused(f"model.{name} = {_as_toml(found)} is not there", f"train with {_as_toml(value)}")
    if config.head == "none":
        raise _refused("model.head = 'none' predicts no token", "train with 'tied'")
    if config.head == "untied" and architecture_of(config) == "bitnet":
        raise _refused(
            "model.head = 'untied' is not there beside model.sub_norm = true",
            "train with model.head = 'tied', or with model.sub_norm = false",
        )
    for name, width in (("d_model", config.d_model), ("d_ff", config.ff_width)):
        if is_ternary and width % BLOCK:
            below, above = width // BLOCK * BLOCK, -(-width // BLOCK) * BLOCK
            raise _refused(
                f"model.{name} = {width} is no multiple of {BLOCK}, in which ternary weights are stored",
                f"train with {f'{below} or {above}' if below else above}",
            )


def _refused(why: str, mend: str) -> InputError:
    return InputError(f"{why} in llama.cpp: {mend}")


def _as_toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _add_shape(writer: Any, config: ModelConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ff_width)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.d_head)
    writer.add_rope_freq_base(config.rotary_base)


def _add_vocabulary(writer: Any, words: Vocabulary, tokenizer: Tokenizer, gguf: Any) -> None:
    """A text begins with the separator and a document ends with it.

    Its type is UNUSED: a CONTROL token would also be found in a prompt that holds its name.
    """
    types = [gguf.TokenType.NORMAL] * len(words.tokens)
    types[tokenizer.separator] = gguf.TokenType.UNUSED
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre("gpt-2" if words.model == "gpt2" else "default")
    writer.add_token_list(words.tokens)
    writer.add_token_types(types)
    if words.merges:
        writer.add_token_merges(words.merges)
    else:
        writer.add_token_scores([0.0] * len(words.tokens))
        writer.add_unk_token_id(tokenizer.separator)
    writer.add_bos_token_id(tokenizer.separator)
    writer.add_eos_token_id(tokenizer.separator)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _tensors(model: Transformer, kind: Kind) -> Iterator[tuple[str, NDArray[np.float32], str]]:
    """Name, values and type of every tensor; vectors stay in float32."""
    config = model.config
    kind_of_map = kind.upper()
    yield "token_embd.weight", _values(model.embedding.weight), "F16"
    if config.head == "untied":
        assert model.head is not None
        yield "output.weight", _values(model.head.weight), "F16"
    assert isinstance(model.final_norm, RMSNorm)
    yield "output_norm.weight", _values(model.final_norm.gain), "F32"
    for layer, block in enumerate(model.blocks):
        here = f"blk.{layer}."
        attn, ff = block.attn, block.ff
        assert isinstance(ff, GatedFeedForward)
        norms = {"attn_norm": block.attn_residual.norm, "ffn_norm": block.ff_residual.norm}
        if architecture_of(config) == "bitnet":
            norms |= {"attn_sub_norm": attn.out.norm, "ffn_sub_norm": ff.down.norm}
        for name, norm in norms.items():
            assert isinstance(norm, RMSNorm)
            yield f"{here}{name}.weight", _values(norm.gain), "F32"
        q, k = _weight(attn.q), _weight(attn.k)
        if architecture_of(config) == "llama":
            q, k = _pairs_adjacent(q, config.d_head), _pairs_adjacent(k, config.d_head)
        yield here + "attn_q.weight", q, kind_of_map
        yield here + "attn_k.weight", k, kind_of_map
        maps = {"attn_v": attn.v, "attn_output": attn.out, "ffn_gate": ff.gate, "ffn_up": ff.up, "ffn_down": ff.down}
        for name, linear in maps.items():
            yield f"{here}{name}.weight", _weight(linear), kind_of_map


def _weight(linear: Linear) -> NDArray[np.float32]:
    """W; of a ternary map levels · step, whose largest entry, which TQ takes for a block's scale, is the step."""
    if not isinstance(linear, BitLinear):
        return _values(linear.weight)
    with torch.no_grad():
        levels, step = ternary(linear.weight)
    return _values(levels * step)


def _pairs_adjacent(weight: Float[NDArray, "width d_model"], d_head: int) -> Float[NDArray, "width d_model"]:
    """Rows in the order of the architecture `llama`, whose rotation pairs entries 2i and 2i + 1 of a head.

    Ours pairs i and i + d_head/2, as `bitnet` does.
    """
    return weight.reshape(-1, 2, d_head // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _values(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().float().cpu().numpy()


def _gguf() -> Any:
    try:
        return importlib.import_module("gguf")
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise InputError("--to gguf takes the extra gguf: pip install residuum[gguf]") from None
