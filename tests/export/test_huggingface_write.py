"""What is written, as transformers itself loads it: the same logits, the same tokens, the same text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from residuum.engine.check.cases import ready
from residuum.errors import InputError
from residuum.export.huggingface import bitnet, write
from residuum.export.huggingface.shapes import shape_of
from residuum.model import ModelConfig, Sampling, Transformer, generate
from residuum.model.quantise import ternary
from residuum.train.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer, load_tokenizer

LLAMA: dict[str, Any] = {"norm": "rmsnorm", "positions": "rotary", "activation": "swiglu"}
BITNET: dict[str, Any] = {**LLAMA, "linear": "ternary"}
BERT: dict[str, Any] = {"residual": "post", "embedding_norm": True, "causal": False, "head": "none"}

COMPILED = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
"""What ternary maps of transformers import on their way to the compiler."""

BPE = BPETokenizer.learn(["the quick brown fox\n  jumps over 12 lazy dogs\n"] * 3, 290)
LETTERS = "\n\t\r abcxyzé日🎉e\u0301\u200d\ufeff\x00'<>|separto"


def shape(**values: Any) -> ModelConfig:
    small = {"vocab_size": BPE.vocab_size, "context": 48, "d_model": 24, "n_layers": 2, "n_heads": 4, "init_std": 0.2}
    return ModelConfig(**{**small, **values})


def model(**values: Any) -> Transformer:
    torch.manual_seed(0)
    return ready(Transformer(shape(**values)), torch.float32).eval()


def loaded(library: Any, ours: Transformer, folder: Path, tokenizer: Tokenizer = BPE) -> Any:
    write(ours, tokenizer, folder)
    kind = library.AutoModelForCausalLM if ours.config.causal else library.AutoModel
    theirs, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    assert not any(info.values()), info  # nothing missing, nothing too much, nothing of another shape
    return theirs


@torch.no_grad()
def difference(ours: Transformer, theirs: Any) -> torch.Tensor:
    """The largest at each place, in parts of the largest score."""
    tokens = torch.randint(ours.config.vocab_size, (3, 40))
    said = theirs(tokens)
    expected = ours(tokens)
    scores = said.logits if ours.config.causal else said.last_hidden_state
    return (scores - expected).abs().amax(-1) / expected.abs().max()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("LlamaForCausalLM", {**LLAMA, "n_kv_heads": 2}),
        ("LlamaForCausalLM", {**LLAMA, "bias": True, "head": "untied", "activation": "squared_reglu", "d_ff": 22}),
        ("GPT2LMHeadModel", {"bias": True}),
        ("GPT2LMHeadModel", {"head": "untied", "activation": "relu", "d_ff": 22, "n_kv_heads": 4}),
        ("GPT2LMHeadModel", {"positions": "sinusoidal", "activation": "squared_relu"}),
        ("BertModel", {**BERT, "bias": True}),
        ("BertModel", {**BERT, "activation": "relu", "positions": "sinusoidal"}),
    ],
)
def test_a_full_precision_model_says_the_same(
    transformers: Any, tmp_path: Path, name: str, values: dict[str, Any]
) -> None:
    ours = model(**values)
    theirs = loaded(transformers, ours, tmp_path / "out")
    assert type(theirs).__name__ == name
    assert difference(ours, theirs).max() < 1e-5


@COMPILED
@pytest.mark.parametrize(
    "values", [{"n_kv_heads": 2}, {"head": "untied", "activation": "squared_reglu", "d_ff": 20}], ids=str
)
def test_a_ternary_model_says_the_same(transformers: Any, tmp_path: Path, values: dict[str, Any]) -> None:
    ours = model(**{**BITNET, **values})
    theirs = loaded(transformers, ours, tmp_path / "out")
    assert type(theirs).__name__ == "BitNetForCausalLM"
    assert theirs.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    found = difference(ours, theirs)
    # Where the last bit differs an activation may fall to the next of 127 levels, and what follows it moves.
    assert found.median() < 1e-5
    assert found.max() < 0.05


@COMPILED
@pytest.mark.parametrize("values", [{}, LLAMA, BITNET], ids=["gpt2", "llama", "bitnet"])
def test_text_goes_on_the_same(transformers: Any, tmp_path: Path, values: dict[str, Any]) -> None:
    ours = model(**values)
    theirs = loaded(transformers, ours, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    for prompt in ("", "the fox", "  jumps\nover"):
        given = tokenizer(prompt, return_tensors="pt")
        written = theirs.generate(**given, max_new_tokens=12, do_sample=False)[0].tolist()
        start = [BPE.separator, *BPE.encode(prompt).tolist()]
        expected = []
        for token in generate(ours, start, 12, Sampling(0)):
            expected.append(token)
            if token in BPE.ends:
                break
        assert written == start + expected


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Any]]:
    """Each tokenizer of ours, and what transformers makes of its files."""
    library = pytest.importorskip("transformers", reason="because the extra hf is not installed")
    found = {}
    for name, ours in {"byte": ByteTokenizer(), "char": CharTokenizer(LETTERS), "bpe": BPE}.items():
        folder = tmp_path_factory.mktemp(name) / "out"
        write(model(vocab_size=ours.vocab_size), ours, folder)
        found[name] = ours, library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return found


@pytest.mark.parametrize("name", ["byte", "char", "bpe"])
@settings(max_examples=60, deadline=None)
@given(text=TEXT, letters=st.text(LETTERS, max_size=40))
@example(text="", letters="")
@example(text="<|separator|>", letters="<|separator|>")
@example(text=" \r\n\t\u2028 é e\u0301 👩‍🚀 \U0010ffff\x00\ufeff'll 12", letters=" \r\n\t")
def test_every_text_is_cut_the_same(
    readers: dict[str, tuple[Tokenizer, Any]], name: str, text: str, letters: str
) -> None:
    ours, theirs = readers[name]
    chosen = letters if name == "char" else text
    tokens = theirs(chosen)["input_ids"]
    assert tokens == [ours.separator, *ours.encode(chosen).tolist()]
    assert theirs.decode(tokens, skip_special_tokens=True) == chosen
    assert theirs(chosen, add_special_tokens=False)["input_ids"] == tokens[1:]


def test_marks_and_lengths(readers: dict[str, tuple[Tokenizer, Any]]) -> None:
    for ours, theirs in readers.values():
        assert theirs.bos_token_id == theirs.eos_token_id == theirs.pad_token_id == ours.separator
        assert (theirs.model_max_length, theirs.padding_side) == (48, "left")


def test_a_character_outside_the_alphabet_is_refused_there_too(readers: dict[str, tuple[Tokenizer, Any]]) -> None:
    ours, theirs = readers["char"]
    with pytest.raises(InputError):
        ours.encode("Q")
    with pytest.raises(Exception, match="UNK"):
        theirs("Q")


@settings(max_examples=20, deadline=None)
@given(text=TEXT)
def test_bytes_outside_utf8_are_shown_the_same(readers: dict[str, tuple[Tokenizer, Any]], text: str) -> None:
    ours, theirs = readers["byte"]
    broken = list(text.encode()[1::2])
    assert theirs.decode(broken) == ours.decode(broken)


@torch.no_grad()
def test_four_levels_share_a_byte() -> None:
    ours = model(**BITNET)
    written = bitnet.tensors(ours)["model.layers.1.self_attn.q_proj.weight"]
    levels = ternary(ours.blocks[1].attn.q.weight)[0]
    assert (written.dtype, written.shape) == (torch.uint8, (6, 24))
    for i in range(4):
        assert torch.equal((written >> 2 * i & 3).float() - 1, levels[6 * i : 6 * i + 6])


@pytest.mark.parametrize(
    ("values", "named", "nearest"),
    [
        ({"residual": "rezero"}, "model.residual = 'rezero'", "GPT2LMHeadModel"),
        ({"positions": "rotary"}, "model.positions = 'rotary'", "GPT2LMHeadModel"),
        ({**LLAMA, "norm": "layernorm"}, "model.norm = 'layernorm'", "LlamaForCausalLM"),
        ({"n_kv_heads": 2}, "model.n_kv_heads = 2", "GPT2LMHeadModel"),
        ({"n_experts": 4}, "model.n_experts = 4", "GPT2LMHeadModel"),
        ({"embedding_norm": True}, "model.embedding_norm = true", "GPT2LMHeadModel"),
        ({"causal": False, "head": "none"}, "model.embedding_norm = false and model.residual = 'pre'", "BertModel"),
        ({**BERT, "embedding_norm": False}, "model.embedding_norm = false", "BertModel"),
        ({**BITNET, "sub_norm": False}, "model.sub_norm = false", "BitNetForCausalLM"),
        ({**BITNET, "bias": True}, "model.bias = true", "BitNetForCausalLM"),
        ({**BITNET, "activation": "squared_relu"}, "model.activation = 'squared_relu'", "BitNetForCausalLM"),
        ({**BITNET, "d_ff": 22}, "model.d_ff = 22", "multiple of 4"),
    ],
    ids=str,
)
def test_what_no_class_computes_is_refused(values: dict[str, Any], named: str, nearest: str) -> None:
    with pytest.raises(InputError) as refused:
        shape_of(shape(**values))
    line = str(refused.value)
    assert named in line
    assert nearest in line
    assert "\n" not in line


def test_nothing_is_written_of_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write(model(residual="rezero"), BPE, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("taken", ["folder", "file", "link"])
def test_what_is_there_is_not_replaced(tmp_path: Path, taken: str) -> None:
    out = tmp_path / "out"
    if taken == "folder":
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")
    elif taken == "file":
        out.write_text("years of work")
    else:
        out.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="is there already: choose another out"):
        write(model(), BPE, out)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_imported_tokenizer_goes_out_again(transformers: Any, tmp_path: Path) -> None:
    write(model(), BPE, tmp_path / "first")
    written = json.loads((tmp_path / "first" / "tokenizer.json").read_text())
    content = {"type": "imported", "vocab_size": 300, "separator": 0, "ends": [5, 7], "tokenizer": written}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    write(model(vocab_size=300), tokenizer, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert theirs("the fox")["input_ids"] == [0, *tokenizer.encode("the fox").tolist()]
    assert theirs.eos_token_id == 5
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [5, 7]
