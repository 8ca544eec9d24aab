"""A run as a folder that transformers loads with a class of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from residuum.export.huggingface.shapes import Shape, shape_of
from residuum.export.huggingface.tokenizer import tokenizer_files
from residuum.files import check_free, whole_folder
from residuum.model import ModelConfig, Transformer
from residuum.train import RunFolder
from residuum.train.tokenizer import Tokenizer


def export(folder: RunFolder, out: Path) -> str:
    """Write the run as the folder `out`, and say what runs it. Raises `InputError` where no class holds the model."""
    shape_of(folder.recipe.model)  # before weights are read
    return write(folder.model(), folder.tokenizer, out)


def write(model: Transformer, tokenizer: Tokenizer, out: Path) -> str:
    """The same for a model and its tokenizer, with which an encoder, too, can be written.

    Raises `InputError`, before anything is written, also where `out` is taken.
    """
    check_free(out, "out")
    shape = shape_of(model.config)
    tensors = {name: tensor.contiguous() for name, tensor in shape.tensors(model).items()}
    files = _files(shape, model.config, tokenizer)
    with whole_folder(out) as part:
        for name, content in files.items():
            (part / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        try:
            save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
    loader = "AutoModelForCausalLM" if model.config.causal else "AutoModel"
    takes = "; ternary maps take accelerate and a C++ compiler" if model.config.linear == "ternary" else ""
    return f"wrote {out}, a {shape.name}: transformers loads it with {loader}.from_pretrained('{out}'){takes}"


def _files(shape: Shape, config: ModelConfig, tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    separator, ends_with = tokenizer.separator, sorted(tokenizer.ends)
    ends = {
        "bos_token_id": separator,
        "eos_token_id": ends_with[0] if len(ends_with) == 1 else ends_with,
        "pad_token_id": separator,
    }
    files = tokenizer_files(tokenizer, config.context, config.causal)
    files["config.json"] = {"architectures": [shape.name], "dtype": "float32", **shape.config(config), **ends}
    if config.causal:
        files["generation_config.json"] = ends
    return files
