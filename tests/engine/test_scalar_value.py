from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest

from residuum.engine.scalar.value import (
    Value,
    attend,
    cross_entropy,
    linear,
    mean,
    rms_norm,
    softmax,
)

Function = Callable[[list[Value]], Value]


def weighed(values: list[Value]) -> Value:
    """One number that depends on each of them differently."""
    return sum((value * (0.3 + 0.7 * i) for i, value in enumerate(values)), Value(0.0))


def matrix(values: list[Value], columns: int) -> list[list[Value]]:
    return [values[start : start + columns] for start in range(0, len(values), columns)]


CASES: dict[str, tuple[int, Function]] = {
    "add": (2, lambda v: v[0] + v[1] + 3.0),
    "radd": (1, lambda v: 3.0 + v[0]),
    "mul": (2, lambda v: 2.0 * v[0] * v[1] * 3.0),
    "sub": (2, lambda v: (v[0] - v[1]) * (2.0 - v[0]) * (v[1] - 5.0)),
    "neg": (1, lambda v: -v[0]),
    "div": (2, lambda v: v[0] / v[1] + 2.0 / v[1] + v[0] / 4.0),
    "pow": (1, lambda v: v[0] ** 3 + v[0] ** -2),
    "exp": (1, lambda v: v[0].exp()),
    "log": (1, lambda v: (v[0] * v[0]).log()),
    "relu": (4, lambda v: weighed([x.relu() for x in v])),
    "squared_relu": (4, lambda v: weighed([x.squared_relu() for x in v])),
    "itself twice": (1, lambda v: v[0] * v[0] + v[0]),
    "a diamond": (2, lambda v: (lambda y: y * y + y.exp() * v[0])(v[0] * v[1])),
    "mean": (5, lambda v: mean([x * x for x in v])),
    "linear": (
        3 * 2 + 2 * 3,
        lambda v: weighed([y for row in linear(matrix(v[:6], 3), matrix(v[6:], 3)) for y in row]),
    ),
    "linear, scaled": (
        2 * 1 + 3 * 1,
        lambda v: weighed([y for row in linear(matrix(v[:2], 1), matrix(v[2:], 1), -0.4) for y in row]),
    ),
    "rms_norm": (6, lambda v: weighed(rms_norm(v[:3], v[3:], 0.1))),
    "rms_norm of one": (2, lambda v: weighed(rms_norm(v[:1], v[1:], 0.1))),
    "attend": (3 + 3 * 2, lambda v: weighed(attend(v[:3], matrix(v[3:], 2)))),
    "attend to one": (1 + 2, lambda v: weighed(attend(v[:1], [v[1:]]))),
    "cross_entropy": (4, lambda v: cross_entropy(v, 2)),
    "cross_entropy of one": (1, lambda v: cross_entropy(v, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_slopes_against_central_differences(name: str) -> None:
    count, function = CASES[name]
    random = Random(1)
    points = [random.choice((-1, 1)) * random.uniform(0.3, 1.5) for _ in range(count)]
    values = [Value(point) for point in points]
    function(values).backward()
    for i, value in enumerate(values):
        h = 1e-5
        above, below = (
            function([Value(p + sign * h * (i == j)) for j, p in enumerate(points)]).data for sign in (1, -1)
        )
        assert value.grad == pytest.approx((above - below) / (2 * h), rel=1e-8, abs=1e-9), i


def test_fused_values_are_their_formulas() -> None:
    """The same numbers from plain operators, which the fused nodes stand for."""
    s, v = [Value(x) for x in (0.3, -1.2, 2.0)], matrix([Value(x) for x in (1.0, 2.0, -3.0, 0.5, 0.25, 4.0)], 2)
    powers = [x.exp() for x in s]
    shares = [power / sum(powers) for power in powers]
    for j, fused in enumerate(attend(s, v)):
        assert fused.data == pytest.approx(sum(share * row[j] for share, row in zip(shares, v, strict=True)).data)
    assert cross_entropy(s, 1).data == pytest.approx((-shares[1].log()).data)
    gain = [Value(x) for x in (1.0, -2.0, 0.5)]
    root = (sum(x * x for x in s) / 3 + 1e-5) ** -0.5
    for fused, x, g in zip(rms_norm(s, gain, 1e-5), s, gain, strict=True):
        assert fused.data == pytest.approx((x * root * g).data)


def test_nothing_is_counted_twice_over_shared_nodes() -> None:
    """Two losses over one node, each walked on its own, give the gradient of their sum."""
    x = Value(3.0)
    shared = x * x
    first, second = shared * 2.0, shared * 5.0
    first.backward()
    second.backward()
    assert x.grad == 2 * 2 * 3 + 5 * 2 * 3


def test_backward_adds_and_scales() -> None:
    x = Value(3.0)
    y = x * x
    y.backward()
    y.backward(0.5)
    assert x.grad == 6.0 + 3.0
    leaf = Value(1.0)
    leaf.backward(2.0)
    leaf.backward(2.0)
    assert leaf.grad == 4.0


def test_a_deep_graph_overflows_no_stack() -> None:
    x = Value(1.0)
    y = x
    for _ in range(100_000):
        y = y + x
    y.backward()
    assert x.grad == 100_001
    del y  # it is taken apart node by node, which must not nest either


def test_relu_at_zero_has_slope_zero() -> None:
    for name in ("relu", "squared_relu"):
        x = Value(0.0)
        getattr(x, name)().backward()
        assert x.grad == 0.0


def test_large_scores_overflow_nothing() -> None:
    scores = [Value(x) for x in (1e4, -1e4, 0.0)]
    loss = cross_entropy(scores, 1)
    loss.backward()
    assert (loss.data, [s.grad for s in scores]) == (2e4, [1.0, -1.0, 0.0])
    assert softmax([1e308, -1e308]) == [1.0, 0.0]


def test_what_is_not_finite_stays_so() -> None:
    """Training that diverged is to be seen in the loss, not in a traceback."""
    for number in (math.nan, math.inf):
        assert math.isnan(cross_entropy([Value(number), Value(0.0)], 1).data)
        assert math.isnan(rms_norm([Value(number), Value(1.0)], [Value(1.0)] * 2, 1e-5)[0].data)
        assert math.isnan(attend([Value(number), Value(0.0)], [[Value(1.0)], [Value(2.0)]])[0].data)
