"""Generation by the packed decoder against the same shape in PyTorch's float32 and against llama.cpp's TQ2_0.

One sequence on two threads: a prompt of 128 tokens, then 64 new ones, the likeliest each time, keys and values cached.
The three take turns in every round; llama.cpp's times are those that it reports itself. Bounds, at 95M: a token in at
most 0.25 × the time of PyTorch's float32 and 1.25 × that of llama.cpp; a ternary weight in at most 2.1 bits, in memory
and in the file. Weights are random: time does not depend on them.

usage: python benchmarks/packed.py [RECIPE [ROUNDS]]   # bitnet-95m, 12
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import tokenizers
import torch
import xllamacpp

import harness
from residuum.export import gguf
from residuum.files import write_whole
from residuum.model import Transformer
from residuum.packed import PackedDecoder, load, pack, save
from residuum.train import RunFolder, load_recipe
from residuum.train.checkpoint import save_checkpoint
from residuum.train.recipe import Recipe
from residuum.train.tokenizer import BPETokenizer

THREADS, PROMPT, NEW = 2, 128, 64


class Took(NamedTuple):
    """Seconds for the whole prompt, and for each new token."""

    prompt: float
    token: float


def main(recipe_name: str = "bitnet-95m", rounds: str = "12") -> None:
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    recipe = load_recipe(recipe_name)
    recipe = replace(recipe, model=replace(recipe.model, vocab_size=recipe.data.vocab_size))
    prompt = np.random.default_rng(0).integers(1, recipe.model.vocab_size, PROMPT).tolist()
    with TemporaryDirectory() as name:
        folder = new_run(Path(name) / "run", recipe)
        packed_file, gguf_file = Path(name) / "packed.safetensors", Path(name) / "model.gguf"
        save(packed_file, pack(folder.model()), folder.tokenizer.to_json())
        gguf.export(folder, gguf_file, "tq2_0")
        packed = load(packed_file).packed
        readers = {
            "packed": packed_run(PackedDecoder(packed, THREADS), prompt),
            "torch float32": torch_run(Transformer(replace(recipe.model, linear="float")).eval(), prompt),
            "llama.cpp TQ2_0": llama_run(gguf_file, prompt),
        }
        sizes = {
            "bits_per_weight": packed.bits_per_weight(),
            "packed_file_bytes": packed_file.stat().st_size,
            "gguf_file_bytes": gguf_file.stat().st_size,
        }
        took = in_turns(readers, int(rounds))
    figures: dict[str, Any] = {"recipe": recipe_name, "threads": THREADS, "prompt": PROMPT, "new": NEW, **sizes}
    for other in ("torch float32", "llama.cpp TQ2_0"):
        both = list(zip(took["packed"], took[other], strict=True))
        figures[f"packed_against_{other}"] = {
            "prompt": harness.of_pairs([(ours.prompt, theirs.prompt) for ours, theirs in both]),
            "token": harness.of_pairs([(ours.token, theirs.token) for ours, theirs in both]),
        }
    figures["runtimes"] = {name: version(name) for name in ("numba", "xllamacpp")}
    bounds = {"bits_per_weight": 2.1, "torch float32": 0.25, "llama.cpp TQ2_0": 1.25}
    harness.save("packed", {"bounds": bounds, **figures})


def in_turns(readers: dict[str, Callable[[], Took]], rounds: int) -> dict[str, list[Took]]:
    """All of them in each round, each time in another order; once before that is not counted."""
    took: dict[str, list[Took]] = {name: [] for name in readers}
    for reader in readers.values():
        reader()
    names = list(readers)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            took[name].append(readers[name]())
            time.sleep(0.05)  # threads that still wait for more of the same work give up
    return took


def packed_run(decoder: PackedDecoder, prompt: list[int]) -> Callable[[], Took]:
    def run() -> Took:
        decoder.forget()
        return timed(lambda tokens: int(decoder.read(tokens).argmax()), prompt)

    return run


def torch_run(model: Transformer, prompt: list[int]) -> Callable[[], Took]:
    assert model.head is not None
    head = model.head

    @torch.inference_mode()
    def run() -> Took:
        cache = model.new_cache(batch=1)

        def best(tokens: list[int]) -> int:
            last = model.states(torch.tensor([tokens]), cache=cache)[:, -1]  # the head for one place, as the others do
            return int(head(last).argmax())

        return timed(best, prompt)

    return run


def timed(best: Callable[[list[int]], int], prompt: list[int]) -> Took:
    start = time.perf_counter()
    token = best(prompt)
    begun = time.perf_counter()
    for _ in range(NEW):
        token = best([token])
    return Took(begun - start, (time.perf_counter() - begun) / NEW)


def llama_run(file: Path, prompt: list[int]) -> Callable[[], Took]:
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.verbosity = PROMPT + NEW + 64, 1, 0, -1
    params.cache_prompt = params.fit_params = False
    server = xllamacpp.Server(params)
    asked = {"prompt": prompt, "n_predict": NEW, "temperature": 0, "samplers": ["temperature"], "ignore_eos": True}

    def run() -> Took:
        timings = server.handle_completions({**asked, "cache_prompt": False})["timings"]
        assert timings["prompt_n"] == PROMPT
        assert timings["predicted_n"] == NEW
        return Took(timings["prompt_ms"] / 1e3, timings["predicted_per_token_ms"] / 1e3)

    return run


def new_run(path: Path, recipe: Recipe) -> RunFolder:
    """A run of random weights, and of a tokenizer with as many tokens."""
    folder = RunFolder.create(path)
    folder.write_recipe(recipe, fingerprint="")
    write_whole(folder.tokenizer_file, some_tokenizer(recipe.model.vocab_size).to_json())
    model = Transformer(recipe.model)
    save_checkpoint(folder.checkpoints, 0, model, torch.optim.AdamW(model.parameters()), {}, folder.made_from(), keep=1)
    return folder


def some_tokenizer(vocab_size: int) -> BPETokenizer:
    def tokens() -> Iterator[str]:
        yield "<|separator|>"
        yield from sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        yield from (f"token{number}" for number in range(vocab_size))

    vocabulary = {token: number for number, token in zip(range(vocab_size), tokens(), strict=False)}
    return BPETokenizer(tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [])))


if __name__ == "__main__":
    main(*sys.argv[1:])
