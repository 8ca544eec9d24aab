"""The likeliest text after 100 prompts, by everything that a run can be read with, against the run itself.

Packed weights (embedding and head in eight bits, and in floating point), the folder for transformers, the file for
llama.cpp. Of a run that answers questions the prompts are held-out questions, else pieces of held-out text. Logits are
compared after each prompt: the root of the mean square difference over that of the logits, their mean taken away.

usage: python benchmarks/same_text.py RUN [RUN ...]
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
import xllamacpp
from numpy.typing import NDArray

import harness
from residuum.errors import InputError
from residuum.export import export
from residuum.model import CachedTransformer, Decoder, Sampling, generate
from residuum.packed import PackedDecoder, pack
from residuum.train import RunFolder
from residuum.train.text import read_corpus

PROMPTS, NEW = 100, 20

Reader = Callable[[list[int]], tuple[list[int], NDArray[np.floating]]]
"""A prompt's likeliest continuation, up to the separator, and the scores of its first token."""


def main(*runs: str) -> None:
    torch._dynamo.config.disable = True  # transformers compiles its ternary maps, which takes a C++ compiler
    harness.save("same_text", {"prompts": PROMPTS, "new": NEW, "runs": [of_run(RunFolder.open(run)) for run in runs]})


def of_run(folder: RunFolder) -> dict[str, Any]:
    end, model = folder.tokenizer.separator, folder.model()
    texts = list(islice(prompts(folder), PROMPTS))
    asked = [[end, *folder.tokenizer.encode(text).tolist()] for text in texts]
    ours = [decoded(CachedTransformer(model), end)(prompt) for prompt in asked]
    shape = folder.recipe.model
    found: dict[str, Any] = {
        "run": folder.path.name,
        "shape": f"{shape.linear} {shape.activation}, {shape.n_layers} × {shape.d_model}, sub_norm {shape.sub_norm}",
        "asked": len(asked),
    }
    with TemporaryDirectory() as place:
        for name, reader in readers(folder, Path(place), end):
            if isinstance(reader, InputError):
                found[name] = f"skipped, because {reader}"
                continue
            theirs = [reader(prompt) for prompt in asked]
            pairs = list(zip(ours, theirs, strict=True))
            found[name] = {
                "same_text": sum(a[0] == b[0] for a, b in pairs),
                "same_first_token": sum(a[0][:1] == b[0][:1] for a, b in pairs),
                "logit_difference": difference([a[1] for a in ours], [b[1] for b in theirs]),
            }
            print(folder.path.name, name, found[name], flush=True)
    return found


def readers(folder: RunFolder, place: Path, end: int) -> Iterator[tuple[str, Reader | InputError]]:
    model = folder.model()
    for embedding in ("int8", "float"):
        try:
            yield f"packed, embedding {embedding}", decoded(PackedDecoder(pack(model, embedding)), end)
        except InputError as error:
            yield f"packed, embedding {embedding}", error
    for name, to, kind, read in (
        ("transformers", "hf", None, by_transformers),
        ("llama.cpp TQ2_0", "gguf", "tq2_0", by_llama),
        ("llama.cpp TQ1_0", "gguf", "tq1_0", by_llama),
        ("llama.cpp F16", "gguf", "f16", by_llama),
    ):
        out = place / f"{to}-{kind}"
        try:
            export(folder, to, out, kind)
        except InputError as error:
            yield name, error
        else:
            yield name, read(out, end)


def prompts(folder: RunFolder) -> Iterator[str]:
    held_out, mark = read_corpus(folder.recipe.data).held_out, folder.recipe.data.answer
    if mark is not None:
        yield from (document.partition(mark)[0] + mark for document in held_out)
        return
    random, text = np.random.default_rng(0), "\n".join(held_out)
    while True:
        start, length = random.integers(len(text) - 120), random.integers(10, 120)
        piece = text[start : start + length]
        if len(folder.tokenizer.encode(piece)) + 1 + NEW <= folder.recipe.model.context:
            yield piece


def decoded(decoder: Decoder, end: int) -> Reader:
    def read(prompt: list[int]) -> tuple[list[int], NDArray[np.floating]]:
        decoder.forget()
        scores = decoder.read(prompt)
        decoder.forget()
        room = min(NEW, decoder.context - len(prompt))
        return until(end, generate(decoder, prompt, room, Sampling(0))), scores

    return read


def by_transformers(folder: Path, end: int) -> Reader:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    @torch.inference_mode()
    def read(prompt: list[int]) -> tuple[list[int], NDArray[np.floating]]:
        tokens = torch.tensor([prompt])
        written = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW, do_sample=False)
        return until(end, written[0, len(prompt) :].tolist()), model(tokens).logits[0, -1].float().numpy()

    return read


def by_llama(file: Path, end: int) -> Reader:
    params = xllamacpp.CommonParams()
    params.model.path, params.verbosity, params.n_gpu_layers = str(file), -1, 0
    params.n_parallel, params.n_ctx, params.warmup = 1, 512, False
    params.cache_prompt = params.fit_params = False
    server = xllamacpp.Server(params)

    def read(prompt: list[int]) -> tuple[list[int], NDArray[np.floating]]:
        asked = {"prompt": prompt, "temperature": 0, "samplers": ["temperature"], "cache_prompt": False}
        written = post(server, {**asked, "n_predict": NEW, "return_tokens": True})["tokens"]
        first = post(server, {**asked, "n_predict": 1, "n_probs": 1 << 20})
        chances = first["completion_probabilities"][0]["top_logprobs"]
        scores = np.zeros(1 + max(each["id"] for each in chances))
        for each in chances:
            scores[each["id"]] = each["logprob"]
        return until(end, written), scores

    return read


def post(server: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """By its own HTTP, which gives tokens and their chances."""
    body, kind = json.dumps(asked).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{server.listening_address}/completion", body, kind)) as answer:
        return json.load(answer)


def until(end: int, tokens: Sequence[int] | Iterator[int]) -> list[int]:
    found = []
    for token in tokens:
        if token == end:
            break
        found.append(token)
    return found


def difference(ours: list[NDArray[np.floating]], theirs: list[NDArray[np.floating]]) -> float:
    a, b = (np.stack([scores - scores.mean() for scores in each]) for each in (ours, theirs))
    return float(np.sqrt(((a - b) ** 2).mean() / (a**2).mean()))


if __name__ == "__main__":
    main(*sys.argv[1:])
