"""What transformers wrote, as a run: the same logits, and every step that a run can take from there."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from residuum.cli import main
from residuum.errors import InputError
from residuum.export.huggingface import write
from residuum.export.huggingface.importing import import_run, recipe_of
from residuum.export.huggingface.read import read_model, read_tokenizer
from residuum.export.huggingface.source import Source
from residuum.model import ModelConfig, Sampling, Transformer, generate
from residuum.model.linear import BitLinear
from residuum.model.quantise import ternary
from residuum.packed.weights import fields
from residuum.train import RunFolder, train, train_twin
from residuum.train.pieces import pieces
from residuum.train.recipe import RunConfig
from residuum.train.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, ImportedTokenizer, Tokenizer

BPE = BPETokenizer.learn(["the stream carries every value forward\n"] * 3, 290)


def model(head: str = "tied", vocab_size: int = 290) -> Transformer:
    torch.manual_seed(0)
    values: dict[str, Any] = {"norm": "rmsnorm", "positions": "rotary", "activation": "squared_reglu", "head": head}
    config = ModelConfig(
        vocab_size=vocab_size, context=32, d_model=24, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=20,
        linear="ternary", init_std=0.2, norm_eps=1e-6, rotary_base=500.0, **values,
    )  # fmt: skip
    return Transformer(config).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as `residuum export` writes it."""
    write(model(), BPE, tmp_path / "bitnet")
    return tmp_path / "bitnet"


def change(folder: Path, file: str = "config.json", **values: Any) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **values}))


def change_weights(folder: Path, **values: Any) -> None:
    path = folder / "model.safetensors"
    weights = {**load_file(path), **values}
    save_file({name: weight for name, weight in weights.items() if weight is not None}, path)


def imported(folder: Path, run: Path, text_folder: Path, *more: str) -> RunFolder:
    assert main(["import", str(folder), "--run.dir", str(run), "--data.source", str(text_folder), *more]) == 0
    return RunFolder.open(run)


def test_what_was_written_comes_back(folder: Path, tmp_path: Path, text_folder: Path) -> None:
    ours, run = model(), imported(folder, tmp_path / "run", text_folder)
    back = run.model()
    assert replace(run.recipe.model, init_std=0.2) == ours.config
    for (name, before), after in zip(ours.named_modules(), back.modules(), strict=True):
        if isinstance(before, BitLinear) and isinstance(after, BitLinear):
            levels, step = ternary(before.weight)
            again, step_again = ternary(after.weight)
            assert torch.equal(levels, again), name
            assert step_again.item() == pytest.approx(step.item(), rel=1e-6)
    for prompt in ("", "the stream", "every\n"):
        start = [0, *BPE.encode(prompt).tolist()]
        assert run.tokenizer.encode(prompt).tolist() == start[1:]
        assert list(generate(back, start, 12, Sampling(0))) == list(generate(ours, start, 12, Sampling(0)))


def test_a_run_goes_on_from_it(folder: Path, tmp_path: Path, text_folder: Path, capsys: Any) -> None:
    small = ["--run.steps", "2", "--optim.batch-size", "2", "--run.sample-tokens", "3", "--model.context", "16"]
    run = imported(folder, tmp_path / "run", text_folder, *small)
    before = run.model().blocks[0].attn.q.weight.clone()
    assert main(["generate", str(run.path), "--prompt", "the", "--max-new-tokens", "3"]) == 0
    assert main(["audit", str(run.path)]) in (0, 1)
    assert main(["train", "--resume", str(run.path)]) in (0, 1)
    after = run.model().blocks[0].attn.q.weight
    assert run.newest_checkpoint().step == 2
    assert 0 < (after - before).abs().max() < 1e-2  # moved from where it was, not from random weights
    lines = run.metrics()
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[-1]["bits_per_byte"] > 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.parametrize(
    ("form", "head"), [("bitlinear", "untied"), ("offline", "tied"), ("offline-levels", "untied"), ("online", "tied")]
)
def test_a_model_of_theirs_says_the_same(transformers: Any, tmp_path: Path, form: str, head: str) -> None:
    config = transformers.BitNetConfig(
        vocab_size=290, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=0, eos_token_id=0, rope_theta=700.0,
        tie_word_embeddings=head == "tied",
    )  # fmt: skip
    theirs = transformers.BitNetForCausalLM(config)
    for parameter in theirs.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5) if parameter.ndim == 1 else torch.nn.init.normal_(
            parameter, std=0.2
        )
    theirs.save_pretrained(tmp_path)
    mode = "offline" if form == "bitlinear" else form.split("-")[0]
    kind = "bitlinear" if form == "bitlinear" else "autobitlinear"
    change(tmp_path, quantization_config={"quant_method": "bitnet", "linear_class": kind, "quantization_mode": mode})
    if form != "online":
        found = {}
        for name, weight in load_file(tmp_path / "model.safetensors").items():
            if "_proj" in name:
                levels, step = ternary(weight)
                found[name] = (
                    levels if form == "offline-levels" else torch.from_numpy(fields(levels.to(torch.int8).numpy()))
                )
                found[f"{name}_scale"] = (1 / step if form == "bitlinear" else step).reshape(1)
        change_weights(tmp_path, **found)
    theirs = transformers.BitNetForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    source = Source(tmp_path)
    ours = read_model(source, recipe_of(tmp_path).model)
    tokens = torch.randint(290, (3, 30))
    with torch.no_grad():
        expected = theirs(tokens).logits
        found = (ours(tokens) - expected).abs().amax(-1) / expected.abs().max()
    assert found.median() < 1e-5
    assert found.max() < 0.05  # see test_a_ternary_model_says_the_same


def test_shards_and_half_precision(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    whole = read_model(Source(folder), recipe_of(folder).model)
    half = {name: weight.bfloat16() if weight.is_floating_point() else weight for name, weight in weights.items()}
    names = sorted(half)
    (folder / "model.safetensors").unlink()
    listed = {}
    for shard, part in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
        save_file({name: half[name] for name in part}, folder / shard)
        listed.update(dict.fromkeys(part, shard))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    back = read_model(Source(folder), recipe_of(folder).model)
    assert torch.equal(ternary(back.blocks[1].ff.down.weight)[0], ternary(whole.blocks[1].ff.down.weight)[0])
    torch.testing.assert_close(back.embedding.weight, whole.embedding.weight, rtol=1e-2, atol=0)
    assert back.embedding.weight.dtype == torch.float32
    (folder / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks b\.safetensors"):
        read_model(Source(folder), recipe_of(folder).model)


def test_an_index_beside_whole_weights_is_of_earlier_ones(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    read_model(Source(folder), recipe_of(folder).model)


def test_what_a_config_leaves_open_is_what_transformers_takes(folder: Path, transformers: Any) -> None:
    """Names that are absent, null, or said twice."""
    plain = {"rope_type": "default"}
    for values in (
        {"num_key_value_heads": None},
        {"rope_scaling": {**plain, "rope_theta": 50.0}, "rope_parameters": {**plain, "rope_theta": 7.0}},
        {"rope_scaling": None, "rope_parameters": {**plain, "rope_theta": 7.0}},
        {"hidden_act": "swish"},
    ):
        change(folder, **values)
        theirs, ours = transformers.BitNetConfig.from_pretrained(folder), recipe_of(folder).model
        assert ours.rotary_base == theirs.rope_parameters["rope_theta"], values
        assert ours.kv_heads == theirs.num_key_value_heads, values
        assert (ours.head == "tied") == bool(theirs.tie_word_embeddings), values
    content = json.loads((folder / "config.json").read_text())
    del content["num_key_value_heads"]
    (folder / "config.json").write_text(json.dumps({**content, "num_attention_heads": 10, "hidden_size": 40}))
    assert recipe_of(folder).model.kv_heads == transformers.BitNetConfig.from_pretrained(folder).num_key_value_heads


def test_a_map_of_zeros_stays_one(folder: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    change_weights(folder, **{name: torch.full((6, 20), 0b01010101, dtype=torch.uint8)})
    assert not read_model(Source(folder), recipe_of(folder).model).blocks[1].ff.down.weight.any()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, 'architectures = ["LlamaForCausalLM"]: only'),
        ({"architectures": ["BitNetModel"]}, 'architectures = ["BitNetModel"]: only ["BitNetForCausalLM"]'),
        ({"model_type": "llama"}, 'model_type = "llama": only "bitnet"'),
        ({"auto_map": {"AutoModel": "code.Model"}, "model_type": "bitnet_like"}, "code of its own"),
        ({"quantization_config": None}, "no quantization_config"),
        ({"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True}}, "use_rms_norm"),
        (
            {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["up_proj"]}},
            'modules_to_not_convert = ["up_proj"]: only null or ["lm_head"]',
        ),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"head_dim": 8}, "head_dim"),
        ({"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": []}}, "not_convert = []: only"),
        ({"quantization_config": {"quant_method": "bitnet", "linear_class": "BitLinear"}}, 'class = "BitLinear": only'),
        ({"quantization_config": {"quant_method": "bitnet", "quantization_mode": "Online"}}, 'mode = "Online": only'),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 'json: rope_scaling has rope_type = "linear"'),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, 'json: rope_parameters has rope_type = "yarn"'),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "has partial_rotary_factor = 0.5"),
        ({"rope_parameters": [1]}, "rope_parameters = [1] is no table"),
        ({"rope_theta": "far", "rope_parameters": None}, 'rope_theta = "far": only a number'),
        ({"num_attention_heads": 5}, "hidden_size = 24 is not divisible by num_attention_heads = 5"),
        ({"num_attention_heads": 8}, "rotary positions turn pairs of entries"),
        ({"num_key_value_heads": 3}, "num_attention_heads = 4 is not divisible by num_key_value_heads = 3"),
        ({"hidden_size": "wide"}, 'hidden_size = "wide": only a whole number'),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"vocab_size": 0}, "vocab_size = 0"),
        ({"intermediate_size": True}, "intermediate_size = true"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings = 1000000000000: only a whole number from 1 to"),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps = 1000"),
        ({"rope_parameters": None, "rope_theta": 1e-300}, "rope_theta = 1e-300"),
        ({"vocab_size": 2**31 - 1}, "json: vocab_size = 2147483647: only"),
        ({"hidden_size": 2**31 - 4, "num_attention_heads": 2, "num_key_value_heads": 2}, "embed_tokens.weight is F32"),
        ({"hidden_size": 2**31 - 1, "num_attention_heads": 4}, "is not divisible by num_attention_heads"),
        ({"tie_word_embeddings": "yes"}, 'tie_word_embeddings = "yes"'),
        ({"architectures": [1]}, "architectures = [1]: only"),
        ({"architectures": {"a": 1}}, 'architectures = {"a": 1}: only'),
        ({"hidden_act": ["relu2"]}, 'hidden_act = ["relu2"]'),
        ({"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": [["a"]]}}, "modules_to_not"),
        ({"hidden_size": 32}, "embed_tokens.weight is F32 [290, 24], and by config.json F32 [290, 32]"),
        ({"intermediate_size": 24}, "by config.json"),
        ({"num_hidden_layers": 3}, "lacks the weights of layer 2, and by config.json num_hidden_layers is 3"),
        ({"num_hidden_layers": 100_000}, "lacks the weights of layer 2, and"),
        ({"num_hidden_layers": 1}, "leaves no place for"),
        ({"tie_word_embeddings": False}, "lacks the weight lm_head.weight"),
        ({"vocab_size": 280}, "vocab_size"),
    ],
    ids=str,
)
def test_another_shape_is_refused(
    folder: Path, tmp_path: Path, text_folder: Path, capsys: Any, values: dict[str, Any], said: str
) -> None:
    change(folder, **values)
    refused(folder, tmp_path, text_folder, capsys, said)


def refused(folder: Path, tmp_path: Path, text_folder: Path, capsys: Any, said: str) -> None:
    """One line, status 2, and nothing written."""
    command = ["import", str(folder), "--run.dir", str(tmp_path / "run"), "--data.source", str(text_folder)]
    assert main(command) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"bitnet"}


Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({Q: None}, "lacks the weight"),
        ({"more.weight": torch.zeros(2)}, "leaves no place for"),
        ({Q: torch.zeros(24, 24)}, f"{Q} is F32"),
        ({Q: torch.full((6, 24), 255, dtype=torch.uint8)}, "more than −1, 0 and 1"),
        ({f"{Q}_scale": torch.tensor([-1.0])}, "makes a level"),
        ({f"{Q}_scale": torch.tensor([1e9])}, "makes a level"),
        ({f"{Q}_scale": torch.ones(2)}, f"{Q}_scale is F32 [2]"),
        ({"model.norm.weight": torch.full((24,), float("nan"))}, "not finite"),
        ({"lm_head.weight": torch.zeros(290, 24)}, "lm_head.weight is not the embedding"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_weights_that_are_not_its_own_are_refused(
    folder: Path, tmp_path: Path, text_folder: Path, capsys: Any, values: dict[str, Any], said: str
) -> None:
    change_weights(folder, **values)
    refused(folder, tmp_path, text_folder, capsys, said)


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _panic(folder: Path) -> None:
    """What the tokenizers package reads with an exception that is no `Exception`."""
    change(folder, "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})


def _pipe(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


def _outside(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {Q: "../x.safetensors"}}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_truncated, "damaged"),
        (_pickle, "pickle"),
        (_outside, "lacks ../x.safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer.json"),
        (_pipe, "tokenizer.json is no regular file"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "no tokenizer"),
        (_panic, "no tokenizer"),
        (lambda folder: change(folder, "generation_config.json", eos_token_id=[0, 999]), "is no token"),
        (lambda folder: shutil.rmtree(folder), "is no folder"),
    ],
)
def test_a_damaged_folder_is_refused(
    folder: Path, tmp_path: Path, text_folder: Path, capsys: Any, spoil: Any, said: str
) -> None:
    spoil(folder)
    refused(folder, tmp_path, text_folder, capsys, said)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--model.d-model", "48"], "model.d_model is what"),
        (["--model.context", "64"], "model.context is more than"),
        (["--data.tokenizer", "byte"], "data.tokenizer is what"),
        (["--twin"], "twin = true is nothing for imported weights"),
    ],
)
def test_what_the_folder_decides_cannot_be_chosen(
    folder: Path, tmp_path: Path, text_folder: Path, capsys: Any, more: list[str], said: str
) -> None:
    command = ["import", str(folder), "--run.dir", str(tmp_path / "run"), "--data.source", str(text_folder), *more]
    assert main(command) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_for_transformers_is_no_run(folder: Path, capsys: Any) -> None:
    assert main(["generate", str(folder), "--prompt", "a"]) == 2
    assert "perhaps a model of transformers" in capsys.readouterr().err
    assert main(["generate", str(folder / "model.safetensors"), "--prompt", "a"]) == 2
    assert "has the weights of a model of transformers" in capsys.readouterr().err


def test_nothing_is_written_over(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(folder)
    with pytest.raises(InputError, match=r"--run\.dir is missing"):
        import_run(folder, recipe)
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for taken in ("run", "link"):
        with pytest.raises(InputError, match=r"is there already: choose another --run\.dir"):
            import_run(folder, replace(recipe, run=RunConfig(dir=str(tmp_path / taken))))


SHORT = ["--run.steps", "2", "--run.checkpoint-every", "1", "--run.keep-checkpoints", "1", "--optim.batch-size", "2",
         "--run.sample-tokens", "0", "--run.eval-tokens", "200", "--model.context", "16"]  # fmt: skip


@pytest.mark.parametrize("trained", [False, True])
def test_a_lost_checkpoint_is_no_random_start(
    folder: Path, tmp_path: Path, text_folder: Path, capsys: Any, trained: bool
) -> None:
    run = imported(folder, tmp_path / "run", text_folder, *SHORT)
    if trained:
        train(run, run.recipe)
    (only,) = run.checkpoints.iterdir()
    assert only.name == ("step_00000002" if trained else "step_00000000")
    again = re.escape(f"import the model again with residuum import {folder} --run.dir ANOTHER")
    (only / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=rf"damaged \(its checksum differs\): {again}"):
        run.model()
    shutil.rmtree(only)
    with pytest.raises(InputError, match=rf"has no checkpoint left: {again}"):
        run.model()
    capsys.readouterr()
    assert main(["train", "--resume", str(run.path)]) == 2  # and not from the seed
    assert "has no checkpoint left" in capsys.readouterr().err
    assert not list(run.checkpoints.iterdir())


def test_a_recipe_that_is_none_is_one_line(folder: Path, tmp_path: Path, text_folder: Path) -> None:
    run = imported(folder, tmp_path / "run", text_folder)
    run.recipe_file.write_text("[run\n")
    with pytest.raises(InputError, match=r"recipe\.toml cannot be read .*: restore the run's own file"):
        run.model()


def test_another_run_of_an_imported_one_is_imported_too(folder: Path, tmp_path: Path, text_folder: Path) -> None:
    text = shutil.copytree(text_folder, tmp_path / "text")
    run = imported(folder, tmp_path / "run", text)
    (text / "more.txt").write_text("more\n")
    with pytest.raises(InputError, match=re.escape(f"a new run with residuum import {folder} --run.dir ANOTHER")):
        train(run, run.recipe)


def test_an_imported_run_has_no_twin(folder: Path, tmp_path: Path, text_folder: Path) -> None:
    run = imported(folder, tmp_path / "run", text_folder)
    with pytest.raises(InputError, match="began with imported weights, as no twin would"):
        train_twin(run)
    assert not run.twin.path.exists()


def test_code_of_its_own_is_not_looked_at(folder: Path, tmp_path: Path, text_folder: Path, capsys: Any) -> None:
    said = "code of the folder's own (auto_map) was not looked at"
    imported(folder, tmp_path / "plain", text_folder)
    assert said not in capsys.readouterr().out
    change(folder, auto_map={"AutoModelForCausalLM": "modeling_bitnet.BitNetForCausalLM"})
    (folder / "modeling_bitnet.py").write_text("raise SystemExit('run')\n")
    imported(folder, tmp_path / "run", text_folder)
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("ours", [ByteTokenizer(), CharTokenizer("\n abcdé日🎉"), BPE], ids=["byte", "char", "bpe"])
def test_an_imported_tokenizer_counts_the_same_bytes(tmp_path: Path, ours: Tokenizer) -> None:
    write(model(vocab_size=ours.vocab_size), ours, tmp_path / "out")
    change(tmp_path / "out", vocab_size=ours.vocab_size + 6)  # a model may have rows for more
    back = read_tokenizer(Source(tmp_path / "out"))
    assert back.token_bytes[: ours.vocab_size].tolist() == ours.token_bytes.tolist()
    assert not back.token_bytes[ours.vocab_size :].any()
    for text in ("", "abc\n\nd", "a 日é🎉 b"):
        assert back.encode(text).tolist() == ours.encode(text).tolist()
        assert back.decode([*back.encode(text).tolist(), back.separator]) == text + "\n"


def test_bytes_of_a_sentence_piece_tokenizer() -> None:
    import tokenizers

    pieces = [("<s>", 0.0), ("▁the", -1.0), ("▁", -1.0), ("日", -2.0), *((f"<0x{b:02X}>", -9.0) for b in range(256))]
    inner = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0, byte_fallback=True))
    inner.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    found = ImportedTokenizer(inner, 260, 0, [0]).token_bytes.tolist()
    assert found == [1, 4, 1, 3, *[1] * 256]


def test_a_text_may_begin_with_one_mark_and_end_with_others(folder: Path, tmp_path: Path, text_folder: Path) -> None:
    change(folder, "generation_config.json", eos_token_id=[5, 7])
    run = imported(folder, tmp_path / "run", text_folder)
    assert (run.tokenizer.separator, run.tokenizer.ends) == (0, {5, 7})
    assert "".join(pieces([66, 67, 7, 68], run.tokenizer)) == run.tokenizer.decode([66, 67])


def test_a_character_that_an_imported_alphabet_lacks(tmp_path: Path, text_folder: Path) -> None:
    write(model(vocab_size=4), CharTokenizer("abc"), tmp_path / "chars")
    run = imported(tmp_path / "chars", tmp_path / "run", text_folder)
    assert run.tokenizer.encode("cab").tolist() == [2, 0, 1]
    with pytest.raises(InputError, match="that the model was imported with cannot cut the text"):
        run.tokenizer.encode("cabbage")
