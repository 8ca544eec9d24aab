"""The choice of a token against its plain definition."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from residuum.errors import InputError
from residuum.model import Sampling


class Steps(np.random.Generator):
    """Its numbers are the middles of `count` equal steps from 0 to 1, so that frequencies are chances."""

    def __init__(self, count: int, skipped: float = 0) -> None:
        super().__init__(np.random.PCG64(0))
        self.count, self.taken = count, skipped

    def random(self) -> float:
        self.taken += 1
        return (self.taken - 0.5) / self.count


def frequencies(sampling: Sampling, scores: list[float], count: int = 2000) -> np.ndarray:
    steps, given = Steps(count), np.array(scores, np.float32)
    drawn = [sampling.draw(given, steps) for _ in range(count)]
    return np.bincount(drawn, minlength=len(scores)) / count


def plain(scores: list[float], temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    """The definition, number by number."""
    best = max(scores)
    chances = [math.exp((score - best) / temperature) for score in scores]
    order = sorted(range(len(scores)), key=lambda token: (-chances[token], token))[:top_k]
    if top_p is not None:
        total, reached, kept = sum(chances[token] for token in order), 0.0, []
        for token in order:
            kept.append(token)
            reached += chances[token] / total
            assume(abs(reached - top_p) > 1e-6)
            if reached >= top_p:
                break
        order = kept
    total = sum(chances[token] for token in order)
    return [chances[token] / total if token in order else 0.0 for token in range(len(scores))]


@given(
    st.lists(st.sampled_from([-3.0, -1.0, -0.5, 0.0, 0.0, 0.25, 1.0, 2.0, 4.0]), min_size=1, max_size=9),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.none() | st.integers(1, 10),
    st.none() | st.floats(0.01, 0.999),
)
def test_chances_are_those_of_the_definition(scores, temperature, top_k, top_p) -> None:
    right = plain(scores, temperature, top_k, top_p)
    found = frequencies(Sampling(temperature, top_k, top_p), scores, 500)
    # Each step of 0 to 1 is counted for one token, so that a chance is met to one step.
    np.testing.assert_allclose(found, right, atol=1 / 500 + 1e-6)
    assert not found[np.array(right) == 0].any()


def test_of_equals_the_lower_is_likelier() -> None:
    assert frequencies(Sampling(top_k=2), [1.0, 1.0, 1.0, 1.0]).tolist() == [0.5, 0.5, 0, 0]
    assert frequencies(Sampling(top_p=0.7), [1.0, 1.0, 1.0, 1.0]).nonzero()[0].tolist() == [0, 1, 2]
    assert frequencies(Sampling(0), [1.0, 2.0, 2.0])[1] == 1
    assert frequencies(Sampling(top_k=1), [1.0, 2.0, 2.0])[1] == 1


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=2), Sampling(top_p=0.8)])
def test_the_order_of_near_equals_decides_nothing(sampling: Sampling) -> None:
    for one, other in (([1.0, 1.000001, 0.0], [1.000001, 1.0, 0.0]), ([1.0, 1.0, 0.0], [1.0, 1.000001, 0.0])):
        steps, twin = Steps(98), Steps(98)
        for _ in range(98):
            assert sampling.draw(np.float32(one), steps) == sampling.draw(np.float32(other), twin)


def test_a_nucleus_is_never_empty_nor_more_than_all() -> None:
    scores = [0.0, 1.0, 0.5]
    assert frequencies(Sampling(top_p=1e-300), scores)[1] == 1
    np.testing.assert_array_equal(frequencies(Sampling(top_p=1.0), scores), frequencies(Sampling(), scores))
    np.testing.assert_array_equal(frequencies(Sampling(top_k=99), scores), frequencies(Sampling(), scores))


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-9])
def test_no_temperature_is_too_small(temperature: float) -> None:
    for scores in ([1.0, 3.0, 2.9], [-3e38, 3e38, 0.0], [-math.inf, 1.0, 0.999]):
        assert frequencies(Sampling(temperature), scores, 9)[1] == 1
        assert frequencies(Sampling(temperature, top_k=2, top_p=0.9), scores, 9)[1] == 1


def test_infinite_scores() -> None:
    inf = math.inf
    assert Sampling().draw(np.float32([-inf, 0.0]), Steps(1, skipped=-0.5)) == 1  # by the number 0 too
    assert frequencies(Sampling(), [-inf, 0.0, -inf, 0.0]).tolist() == [0, 0.5, 0, 0.5]
    assert frequencies(Sampling(), [inf, 0.0, -inf, inf]).tolist() == [0.5, 0, 0, 0.5]
    for temperature in (0, 1):
        for bad in ([math.nan, 0.0, 1.0], [0.0, 1.0, math.nan], [-inf, -inf]):
            with pytest.raises(InputError, match=r"the best of the model's scores is -?(nan|inf): its"):
                Sampling(temperature).draw(np.array(bad, np.float32), np.random.default_rng(0))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=40), Sampling(0.7, None, 0.9), Sampling(2, 500, 0.5)])
def test_one_draw_takes_one_number(sampling: Sampling) -> None:
    """So a text does not depend on how tokens were chosen from before."""
    scores = np.random.default_rng(1).normal(size=25_600).astype(np.float32)
    rng, twin = np.random.default_rng(2), np.random.default_rng(2)
    for _ in range(3):
        sampling.draw(scores, rng)
        twin.random()
    assert rng.random() == twin.random()
    Sampling(0).draw(scores, rng)
    assert rng.random() == twin.random()


def test_scores_are_left_as_they_are() -> None:
    scores = np.array([1.0, 2.0, 0.5], np.float32)
    scores.setflags(write=False)
    Sampling(0.5, 2, 0.9).draw(scores, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"temperature": -1}, "temperature is -1: give a finite number of at least 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0: give at least 1"),
        ({"top_p": 0}, "top_p is 0: give a share above 0, up to 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": math.nan}, "top_p is nan"),
    ],
)
def test_bad_values_are_named(values: dict, said: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(said)):
        Sampling(**values)
