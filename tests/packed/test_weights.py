"""What can be packed, and how small it becomes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from residuum.errors import InputError
from residuum.model import ModelConfig, Transformer
from residuum.model.quantise import ternary
from residuum.packed import pack
from residuum.packed.reference import unpacked
from residuum.packed.weights import MATRICES, check, layout, n_ternary
from residuum.train import load_recipe

REFUSED = {
    "model.linear = 'float'": {"linear": "float"},
    "model.residual = 'post'": {"residual": "post"},
    "model.residual = 'hyper-connections'": {"residual": "hyper-connections"},
    "model.residual = 'my_package:Pre'": {"residual": "my_package:Pre"},
    "model.n_experts = 2": {"n_experts": 2},
    "model.bias = true": {"bias": True},
    "model.embedding_norm = true": {"embedding_norm": True},
    "model.causal = false": {"causal": False},
    "model.head = 'none'": {"head": "none"},
    "a width of 524288": {"d_ff": 2**19},
}


@pytest.mark.parametrize(("said", "settings"), REFUSED.items(), ids=REFUSED)
def test_other_shapes_are_refused_in_one_line(said, settings) -> None:
    with pytest.raises(InputError) as refusal:
        check(ModelConfig(**{"linear": "ternary", **settings}))
    assert str(refusal.value).startswith(said)
    assert "without --packed" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_pack_refuses_what_check_does_and_numbers_that_are_none(make) -> None:
    with pytest.raises(InputError, match=r"model\.linear"):
        pack(Transformer(ModelConfig(vocab_size=5, d_model=8, n_layers=1, n_heads=1)))
    model = make()
    with torch.no_grad():
        model.blocks[1].attn.k.weight[3, 2] = float("nan")
    with pytest.raises(InputError, match=r"blocks\.1\.attn\.k\.weight holds numbers that are not finite"):
        pack(model)


@pytest.mark.parametrize("embedding", ["int8", "float"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"activation": "swiglu", "positions": "rotary", "sub_norm": False, "n_kv_heads": 1}, {"head": "untied"}],
)
def test_arrays_are_as_the_layout_says(make, settings, embedding) -> None:
    model = make(**settings)
    packed = pack(model, embedding)
    assert {name: (a.dtype, a.shape) for name, a in packed.arrays.items()} == layout(model.config, embedding)
    assert packed.embedding == embedding
    assert all(array.flags.writeable and array.flags.c_contiguous for array in packed.arrays.values())


def test_weights_are_the_models_and_padding_is_zero(make) -> None:
    model = make(activation="swiglu", d_ff=70)
    packed = pack(model)
    gate = model.blocks[1].ff.gate.weight
    levels, step = ternary(gate)
    found = unpacked(packed.arrays["gate"][1])
    assert found.shape == (72, 64)
    assert np.array_equal(found[:70, :36], levels.detach().numpy())
    assert not found[70:].any()
    assert not found[:, 36:].any()
    assert packed.arrays["step"][1, MATRICES.index("gate")] == step.item()


def test_rows_of_eight_bits_are_near_the_embedding(make) -> None:
    model = make(head="untied")
    with torch.no_grad():
        model.embedding.weight[3] = 0
    packed = pack(model)
    for name, table in (("embedding", model.embedding.weight), ("head", model.head.weight)):
        wanted, step = table.detach().numpy(), packed.arrays[f"{name}_step"][:, None]
        assert np.abs(packed.arrays[name] * step - wanted).max() <= 0.5001 * step.max()
        assert (np.abs(packed.arrays[name]).max(1) == (127 * (np.abs(wanted).max(1) > 0))).all()


def test_what_is_packed_is_a_copy(make) -> None:
    model = make()
    packed = pack(model, "float")
    before = packed.arrays["embedding"].copy()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert np.array_equal(packed.arrays["embedding"], before)
    assert packed.arrays["final_norm"].all()


@pytest.mark.parametrize("recipe", ["bitnet", "bitnet-95m", "bitnet-2b4t"])
def test_real_shapes_take_two_bits_a_weight(recipe) -> None:
    config = load_recipe(recipe).model
    arrays = layout(config, "int8")
    bits = 8 * sum(np.prod(shape) * kind.itemsize for name in (*MATRICES, "step") for kind, shape in [arrays[name]])
    assert 2 <= bits / n_ternary(config) < 2.1
    with torch.device("meta"):
        maps = [m for name, m in Transformer(config).named_parameters() if name.startswith("blocks.") and m.ndim == 2]
    assert n_ternary(config) == sum(map(torch.numel, maps))


def test_bits_count_padding(make) -> None:
    packed = pack(make(n_layers=1))
    # q, k, v, out: 36 × 64, up: 144 × 64, down: 36 × 192, at two bits each; seven steps of 32
    bits = 2 * (4 * 36 * 64 + 144 * 64 + 36 * 192) + 7 * 32
    assert packed.bits_per_weight() == pytest.approx(bits / (4 * 36 * 36 + 2 * 36 * 144))
    assert packed.bits_per_weight() > 2.1


@pytest.mark.parametrize("recipe", ["bitnet", "bitnet-arithmetic", "bitnet-95m", "bitnet-2b4t"])
def test_the_recipes_can_be_packed(recipe) -> None:
    check(replace(load_recipe(recipe).model, vocab_size=16))
