"""A packed model on the disk: as it was written, or refused."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from residuum.errors import InputError
from residuum.packed import PackedDecoder, load, pack, save
from residuum.packed.file import FORMAT

TOKENIZER = json.dumps({"type": "char", "alphabet": 'ab"sha256":"' + "0" * 64 + "é\n"}, ensure_ascii=False)


@pytest.mark.parametrize("embedding", ["int8", "float"])
@pytest.mark.parametrize("head", ["tied", "untied"])
def test_a_file_gives_back_what_was_saved(make, tmp_path, embedding, head) -> None:
    packed = pack(make(head=head, activation="swiglu", n_kv_heads=1), embedding)
    save(tmp_path / "model.safetensors", packed, TOKENIZER, "=")
    found, tokenizer, answer = load(tmp_path / "model.safetensors")
    assert tokenizer == TOKENIZER
    assert found.config == packed.config and answer == "="
    assert found.arrays.keys() == packed.arrays.keys()
    assert all(np.array_equal(found.arrays[name], array) for name, array in packed.arrays.items())
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_loaded_model_reads_as_the_one_that_was_saved(make, text, tmp_path) -> None:
    pytest.importorskip("numba", reason="because the extra `packed` is not installed")
    packed = pack(make(head="untied"))
    save(tmp_path / "model.safetensors", packed, TOKENIZER)
    found, _, answer = load(tmp_path / "model.safetensors")
    assert answer is None
    assert np.array_equal(PackedDecoder(found, 1).read(text), PackedDecoder(packed, 1).read(text))


def test_others_can_read_it(make, tmp_path) -> None:
    packed = pack(make())
    save(tmp_path / "model.safetensors", packed, TOKENIZER)
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
        metadata = file.metadata()
        assert np.array_equal(file.get_tensor("q"), packed.arrays["q"])
    assert metadata["format"] == FORMAT
    assert json.loads(metadata["config"]) == asdict(packed.config)
    assert metadata["tokenizer"] == TOKENIZER


def test_a_damaged_file_is_refused_wherever_it_is_damaged(make, tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    save(path, pack(make(n_layers=1)), TOKENIZER)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, header, 23), *range(header - 4, header + 4), *range(header, len(whole), 997), len(whole) - 1]
    for place in places:
        for damaged in (
            whole[:place],
            whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
            whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :],
        ):
            path.write_bytes(damaged)
            with pytest.raises(InputError) as refusal:
                load(path)
            assert str(path) in str(refusal.value)
            assert "\n" not in str(refusal.value)
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match="damaged"):
        load(path)
    path.write_bytes(whole)
    load(path)


def test_other_files_are_refused(make, tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match=r"cannot read .*: No such file"):
        load(path)
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path)
    for foreign in (b"", b"x", b"{}", bytes(64), b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 40, b"[" * 100_000):
        path.write_bytes(foreign)
        with pytest.raises(InputError, match="is no packed model"):
            load(path)
    path.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(InputError, match=r"is for llama\.cpp"):
        load(path)
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(InputError, match="is no packed model"):
        load(path)
    save_file({"weight": np.zeros(3)}, path, {"format": "residuum.packed/2"})
    with pytest.raises(InputError, match=r"residuum\.packed/2, this version reads residuum\.packed/1"):
        load(path)


def test_a_sound_file_of_another_model_is_refused(make, tmp_path) -> None:
    """The checksum says that nothing changed since; not that what was written makes sense."""
    path, packed = tmp_path / "model.safetensors", pack(make())
    for name, array in (("q", packed.arrays["q"][:, 1:]), ("step", packed.arrays["step"].astype(np.float64))):
        save(path, type(packed)(packed.config, {**packed.arrays, name: array}), TOKENIZER)
        with pytest.raises(InputError, match="holds no model that this version packs"):
            load(path)
    for arrays in (packed.arrays | {"more": np.zeros(3)}, {k: v for k, v in packed.arrays.items() if k != "embedding"}):
        save(path, type(packed)(packed.config, arrays), TOKENIZER)
        with pytest.raises(InputError, match="holds no model that this version packs"):
            load(path)


def test_a_disk_that_refuses_leaves_nothing(make, tmp_path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        save(tmp_path / "taken", pack(make()), TOKENIZER)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_the_file_is_as_small_as_the_memory(make, tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    packed = pack(make(d_model=256, n_heads=4, n_layers=4, d_ff=640, norm="rmsnorm", activation="swiglu"))
    save(path, packed, TOKENIZER)
    assert packed.bits_per_weight() < 2.01
    assert path.stat().st_size < sum(array.nbytes for array in packed.arrays.values()) + 4096
    assert len(load_file(path)) == len(packed.arrays)
