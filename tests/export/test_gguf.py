"""The file holds what the model computes with, and llama.cpp reads the same tokens from it and writes the same text."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from residuum.errors import InputError
from residuum.export.gguf import check, export
from residuum.export.gguf_vocabulary import vocabulary
from residuum.model import ModelConfig, Sampling, generate
from residuum.model.quantise import ternary
from residuum.train import RunFolder, load_recipe, train
from residuum.train.recipe import as_dict, recipe_from
from residuum.train.tokenizer import SEPARATOR, BPETokenizer, ByteTokenizer, CharTokenizer

gguf = pytest.importorskip("gguf", reason="because the extra gguf is not installed")

LLAMA = {"activation": "swiglu", "norm": "rmsnorm", "positions": "rotary", "n_layers": 1, "n_heads": 4, "n_kv_heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "bitnet": {**LLAMA, "linear": "ternary", "d_model": 256, "d_ff": 512},
    "llama": {**LLAMA, "linear": "ternary", "d_model": 256, "d_ff": 256, "sub_norm": False, "head": "untied"},
    "float": {**LLAMA, "d_model": 96, "d_ff": 200, "norm_eps": 1e-3, "rotary_base": 500.0},
}
TEXTS = (
    "", " ", "the stream", "  two  spaces   three ", "a\n\n b\r\n\tc", "don't I'll 123 4567 x1y22", "é ü 中文 🎉 ⅷ²",
    SEPARATOR, f"a{SEPARATOR}b", "\u00a0x\u2003y\u0085", "</s><s>[INST]<|endoftext|>", "tail ", "e\u0301a\u200bb\uffff",
)  # fmt: skip

Train = Callable[..., RunFolder]


@pytest.fixture(scope="session")
def trained(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Runs of a few steps over text that repeats itself, each trained once."""
    runs: dict[str, RunFolder] = {}

    def run(shape: str, tokenizer: str = "bpe", steps: int = 80) -> RunFolder:
        name = f"{shape}-{tokenizer}-{steps}"
        if name not in runs:
            content = as_dict(load_recipe("quick"))
            content["run"] |= {"steps": steps, "eval_every": steps, "checkpoint_every": steps, "sample_tokens": 0}
            content["run"] |= {"eval_tokens": 256, "device": "cpu"}
            content["data"] = {"source": str(text_folder), "tokenizer": tokenizer, "vocab_size": 300}
            content["model"] = {"context": 48, **SHAPES[shape]}
            content["optim"] = {"batch_size": 4, "lr": 8e-3, "warmup": 10}
            runs[name] = RunFolder.create(tmp_path_factory.mktemp("runs") / name)
            train(runs[name], recipe_from(content, "test"))
        return runs[name]

    return run


class Server:
    """llama.cpp with one file, over its own HTTP."""

    def __init__(self, path: Path) -> None:
        xllamacpp = pytest.importorskip("xllamacpp", reason="because xllamacpp, which runs GGUF, is not installed")
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.n_ctx, params.n_parallel, params.n_gpu_layers, params.verbosity = 256, 1, 0, -1
        params.warmup = params.cache_prompt = params.fit_params = False
        self._server = xllamacpp.Server(params)

    def post(self, route: str, **body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self._server.listening_address}/{route}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def tokens(self, text: str) -> list[int]:
        """As /completion reads a prompt: names of special tokens are looked for."""
        return self.post("tokenize", content=text, add_special=True, parse_special=True)["tokens"]


def values(path: Path) -> dict[str, np.ndarray]:
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors
    }


def as_in(architecture: str, weight: torch.Tensor, d_head: int) -> np.ndarray:
    """Row j of a head of `llama` is entry i of our pair (i, i + d_head/2): j = 2i or 2i + 1."""
    rows = weight.detach().numpy()
    if architecture == "bitnet":
        return rows
    half = d_head // 2
    order = [head + j // 2 + j % 2 * half for head in range(0, len(rows), d_head) for j in range(d_head)]
    return rows[order]


@pytest.mark.parametrize(("shape", "kind"), [("bitnet", "tq2_0"), ("bitnet", "tq1_0"), ("llama", "tq2_0")])
def test_a_ternary_map_is_stored_as_its_levels_and_its_step_in_half_precision(
    trained: Train, tmp_path: Path, shape: str, kind: Any
) -> None:
    folder = trained(shape)
    export(folder, tmp_path / "model.gguf", kind)
    found, model = values(tmp_path / "model.gguf"), folder.model()
    attn, ff = model.blocks[0].attn, model.blocks[0].ff
    maps = {"attn_v": attn.v, "attn_output": attn.out, "ffn_gate": ff.gate, "ffn_up": ff.up, "ffn_down": ff.down}
    for name, linear in {"attn_q": attn.q, "attn_k": attn.k, **maps}.items():
        levels, step = ternary(linear.weight.detach())
        rotated = name in ("attn_q", "attn_k")
        wanted = as_in(shape if rotated else "bitnet", levels, attn.d_head) * np.float32(np.float16(step))
        assert np.array_equal(found.pop(f"blk.0.{name}.weight"), wanted), name
    assert np.array_equal(found.pop("output_norm.weight"), model.final_norm.gain.detach().numpy())
    assert np.array_equal(found.pop("token_embd.weight"), model.embedding.weight.detach().half().float().numpy())
    assert ("output.weight" in found) == (shape == "llama")
    norms = {"attn_norm", "ffn_norm"} | ({"attn_sub_norm", "ffn_sub_norm"} if shape == "bitnet" else set())
    assert set(found) - {"output.weight"} == {f"blk.0.{name}.weight" for name in norms}


def test_a_level_row_of_zeros_stays_one(trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = trained("bitnet")
    model = folder.model()
    with torch.no_grad():
        model.blocks[0].ff.down.weight[3] = 0.0
    monkeypatch.setattr(RunFolder, "model", lambda folder: model)
    export(folder, tmp_path / "model.gguf")
    down = values(tmp_path / "model.gguf")["blk.0.ffn_down.weight"]
    assert not down[3].any()
    assert down[4].any()


def test_a_float_map_is_stored_in_half_precision(trained: Train, tmp_path: Path) -> None:
    folder = trained("float")
    said = export(folder, tmp_path / "model.gguf")
    assert said.startswith(f"wrote {tmp_path / 'model.gguf'}: F16, architecture llama, ")
    found, attn = values(tmp_path / "model.gguf"), folder.model().blocks[0].attn
    assert np.array_equal(found["blk.0.attn_k.weight"], as_in("llama", attn.k.weight.half().float(), attn.d_head))
    assert np.array_equal(found["blk.0.attn_v.weight"], attn.v.weight.detach().half().float().numpy())
    assert "output.weight" not in found  # a tied head is the embedding


@pytest.mark.parametrize("tokenizer", ["byte", "bpe", "char"])
def test_llama_cpp_cuts_text_into_the_same_tokens(trained: Train, tmp_path: Path, tokenizer: str) -> None:
    folder = trained("float", tokenizer, steps=1)
    export(folder, tmp_path / "model.gguf")
    server, ours = Server(tmp_path / "model.gguf"), folder.tokenizer
    alphabet = set(ours.alphabet) if isinstance(ours, CharTokenizer) else None
    for text in TEXTS:
        known = text if alphabet is None else "".join(character for character in text if character in alphabet)
        tokens = server.tokens(known)
        assert tokens == [ours.separator, *ours.encode(known).tolist()], known
        assert server.post("detokenize", tokens=tokens)["content"] == known
    ended = server.post("completion", prompt="the", n_predict=3, logit_bias=[[ours.separator, 1000]])
    assert (ended["content"], ended["stop_type"]) == ("", "eos")


def test_characters_that_are_no_bytes_are_tokens_too() -> None:
    assert vocabulary(CharTokenizer("\n aé中")).tokens == ["\n", "▁", "a", "é", "中", SEPARATOR]
    for alphabet, named in (("a\0", "U+0000"), ("a▁", "U+2581")):
        with pytest.raises(InputError, match=rf"has the character {named.replace('+', '[+]')}.* 'byte' or 'bpe'"):
            vocabulary(CharTokenizer(alphabet))


def test_a_tokenizer_from_elsewhere_is_refused() -> None:
    class Imported:
        vocab_size = 300

    with pytest.raises(InputError, match=r"tokenizer came from elsewhere.*: export --to hf"):
        vocabulary(cast(Any, Imported()))


def test_tokens_without_merges_are_bytes() -> None:
    words = vocabulary(ByteTokenizer())
    assert len(set(words.tokens)) == 257
    learned = vocabulary(BPETokenizer.learn(["ab"], 257))
    assert sorted(learned.tokens) == sorted(words.tokens)
    assert learned.tokens[0] == SEPARATOR
    assert learned.merges == words.merges


@pytest.fixture(scope="session")
def prompts(text_folder: Path) -> list[str]:
    text = (text_folder / "00.txt").read_text()
    return [text[start : start + 5 + start % 17] for start in range(0, 100, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_llama_cpp_writes_the_same_text(trained: Train, tmp_path: Path, prompts: list[str], shape: str) -> None:
    folder = trained(shape)
    export(folder, tmp_path / "model.gguf")
    server, tokenizer, model = Server(tmp_path / "model.gguf"), folder.tokenizer, folder.model()
    same, (theirs, ours) = 0, np.zeros((2, len(prompts), tokenizer.vocab_size))
    for place, prompt in enumerate(prompts):
        tokens = [tokenizer.separator, *tokenizer.encode(prompt).tolist()]
        asked = {"prompt": prompt, "n_predict": 12, "temperature": 0, "n_probs": tokenizer.vocab_size}
        answer = server.post("completion", **asked)
        written = list(_document(generate(model, tokens, 12, Sampling(0)), tokenizer))
        same += answer["content"] == tokenizer.decode(written)
        for score in answer["completion_probabilities"][0]["top_logprobs"]:
            theirs[place, score["id"]] = score["logprob"]
        with torch.no_grad():
            ours[place] = model(torch.tensor([tokens]))[0, -1].log_softmax(-1).numpy()
    # Eight bits in other blocks are other numbers: scores differ by 0.004 of their spread, and a tie may break.
    exact = shape == "float"
    assert np.sqrt(((theirs - ours) ** 2).mean()) < (0.001 if exact else 0.02) * ours.std()
    assert same >= (1.0 if exact else 0.9) * len(prompts)


def _document(tokens: Iterator[int], tokenizer: Any) -> Iterator[int]:
    for token in tokens:
        if token == tokenizer.separator:
            return
        yield token


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"d_model": 192}, "tq2_0", "model.d_model = 192 is no multiple of 256.*: train with 256"),
    ({"d_ff": 700}, "tq1_0", "model.d_ff = 700 is no multiple of 256.*: train with 512 or 768"),
    ({"activation": "squared_reglu"}, "tq2_0", "'squared_reglu' would be computed as swiglu.*'swiglu', or.* --to hf"),
    ({"activation": "gelu"}, "tq2_0", "model.activation = 'gelu'.*: train with 'swiglu'"),
    ({"norm": "layernorm"}, "tq2_0", "model.norm = 'layernorm'.*: train with 'rmsnorm'"),
    ({"positions": "learned"}, "tq2_0", "model.positions = 'learned'.*: train with 'rotary'"),
    ({"residual": "post"}, "tq2_0", "model.residual = 'post'.*: train with 'pre'"),
    ({"n_experts": 4}, "tq2_0", "model.n_experts = 4.*: train with 1"),
    ({"embedding_norm": True}, "tq2_0", "model.embedding_norm = true.*: train with false"),
    ({"bias": True}, "tq2_0", "model.bias = true.*: train with false"),
    ({"causal": False}, "tq2_0", "model.causal = false.*: train with true"),
    ({"head": "none"}, "tq2_0", "model.head = 'none'.*: train with 'tied'"),
    (
        {"head": "untied"},
        "tq2_0",
        "model.head = 'untied'.*: train with model.head = 'tied', or with model.sub_norm = f",
    ),
    ({}, "f16", "model.linear = 'ternary' is not stored as F16 in llama.cpp: choose tq2_0 or tq1_0"),
    ({"linear": "float"}, "tq2_0", "model.linear = 'float' is not stored as TQ2_0 in llama.cpp: choose f16"),
]


@pytest.mark.parametrize(("change", "kind", "said"), REFUSED, ids=[str(change) for change, _, _ in REFUSED])
def test_what_llama_cpp_does_not_compute_is_refused(change: dict[str, Any], kind: Any, said: str) -> None:
    check(ModelConfig(**SHAPES["bitnet"]), "tq2_0")
    with pytest.raises(InputError, match=said):
        check(ModelConfig(**{**SHAPES["bitnet"], **change}), kind)


def test_a_refusal_writes_nothing(trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="choose f16"):
        export(trained("float"), tmp_path / "new" / "model.gguf", "tq2_0")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install residuum\[gguf\]"):
        export(trained("float"), tmp_path / "new" / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_leaves_nothing(trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(InputError, match=r"cannot write .*model\.gguf: No space left on device"):
        export(trained("float"), tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())
