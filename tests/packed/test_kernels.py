"""Each compiled part against what it is said to compute."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("numba", reason="because the extra `packed` is not installed")

from numba import config, njit

from residuum.model.quantise import eight_bits
from residuum.packed import kernels
from residuum.packed.reference import unpacked
from residuum.packed.weights import fields

ALL = list(kernels.LANES)
HERE = ALL[ALL.index(kernels.best_dot()) :]
"""What this CPU has: the fastest, and all that is more widely known."""

SHAPES = ((4, 64), (8, 128), (12, 192), (4, 8192), (256, 768))


def weights(kind: str, shape: tuple[int, int]) -> NDArray[np.int8]:
    made = {
        "random": np.random.default_rng(0).integers(-1, 2, shape),
        "+1": np.ones(shape),
        "-1": -np.ones(shape),
        "in turn": np.indices(shape).sum(0) % 3 - 1,
    }
    return made[kind].astype(np.int8)


def inputs(kind: str, shape: tuple[int, int]) -> NDArray[np.int8]:
    if kind == "random":
        return np.random.default_rng(1).integers(-128, 128, shape).astype(np.int8)
    return np.full(shape, int(kind), np.int8)


@pytest.mark.parametrize("dot", ALL)
@pytest.mark.parametrize("tokens", [1, kernels.TOGETHER])
def test_products_are_those_of_whole_numbers(dot: str, tokens: int) -> None:
    if dot not in HERE:
        pytest.skip(f"because this CPU lacks {dot}")
    product = kernels.tile(tokens, dot)

    @njit
    def sums_of(packed, x, y):
        sums, quarter = np.empty(4 * tokens, np.int32), packed.shape[0]
        for row in range(quarter):
            product(packed, row, x, 1, sums)  # from the second token on
            for t in range(tokens):
                for i in range(4):
                    y[t, i * quarter + row] = sums[4 * t + i]

    for shape in SHAPES:
        for of_weights in ("random", "+1", "-1", "in turn"):
            for of_inputs in ("random", "127", "-127", "-128"):
                w, x = weights(of_weights, shape), inputs(of_inputs, (tokens + 1, shape[1]))
                y = np.zeros((tokens, shape[0]), np.int32)
                sums_of(fields(w), x, y)
                used = x[1:].astype(np.int32)
                assert np.array_equal(y - used.sum(1, keepdims=True), used @ w.T.astype(np.int32))


def test_for_another_cpu_no_instruction_is_taken_for_granted(monkeypatch) -> None:
    monkeypatch.setattr(config, "CPU_NAME", "generic")
    assert kernels.best_dot() == "any"


def test_packing_loses_nothing() -> None:
    w = weights("random", (12, 64))
    assert fields(w).shape == (3, 64)
    assert np.array_equal(unpacked(fields(w)), w)
    assert fields(w)[1, 5] == sum((int(w[3 * i + 1, 5]) + 1) << 2 * i for i in range(4))


def test_levels_are_the_models_bit_by_bit() -> None:
    halves = np.array([127, 0.5, 1.5, 2.5, -0.5, -63.5, -127], np.float32)
    rows = [
        np.float32(s) * np.random.default_rng(i).standard_normal(77, np.float32) for i, s in enumerate((1, 9, 1e-3))
    ]
    for x in [halves, halves / 3, *rows * 20, np.zeros(5, np.float32), np.full(3, 1e-7, np.float32)]:
        levels, step = eight_bits(torch.from_numpy(x)[None])
        y = np.empty(x.size, np.int8)
        ours, total = kernels.quantise(x, y)
        assert np.array_equal(y, levels[0].numpy())
        assert ours == step.item()
        assert total == y.astype(int).sum()


@pytest.mark.parametrize("wrong", [np.nan, -np.nan, np.inf, -np.inf])
def test_no_step_where_a_number_is_not_finite(wrong: float) -> None:
    for place in range(40):
        x = np.random.default_rng(0).standard_normal(40).astype(np.float32)
        x[place] = wrong
        assert np.isnan(kernels.quantise(x, np.empty(40, np.int8))[0])


def test_the_largest_float_has_a_step() -> None:
    y, largest = np.empty(2, np.int8), np.finfo(np.float32).max
    step, _ = kernels.quantise(np.array([largest, -largest], np.float32), y)
    assert step == largest / np.float32(127)
    assert y.tolist() == [127, -127]


@pytest.mark.parametrize("function", [kernels.SILU, kernels.SQUARED_RELU, kernels.RELU, kernels.GELU])
@pytest.mark.parametrize("size", [1, 40])
def test_an_activation_of_nan_is_nan(function: int, size: int) -> None:
    x = np.full(size, np.nan, np.float32)
    kernels.activate(x, function)
    assert np.isnan(x).all()


def test_what_attends_with_infinite_weights_is_nan() -> None:
    """As PyTorch's softmax has it. The values are finite."""
    q, keys = np.full(4, 1e30, np.float32), np.full((3, 4), 1e30, np.float32)
    y = np.zeros(4, np.float32)
    kernels.attend(q, keys, np.ones((3, 4), np.float32), 3, np.zeros((1, 3), np.float32), y)
    assert np.isnan(y).all()


def test_exponentials_are_as_exact_as_float32() -> None:
    @njit
    def exponentials(x, y):
        for i in range(x.size):
            y[i] = kernels.exp(x[i])

    x = np.linspace(-87, 87, 100_001).astype(np.float32)
    y = np.empty_like(x)
    exponentials(x, y)
    assert np.abs(y / np.exp(x.astype(np.float64)) - 1).max() < 3e-7
