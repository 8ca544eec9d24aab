from __future__ import annotations

from residuum.audit.rows import SCREEN, Row, fold, index_of, name_of, span
from residuum.stream import Residual, Source


def stack(*pattern: tuple[str, int]) -> list[Row]:
    """Rows of (name, line), numbered as they come."""
    return [
        Row(Residual(i, "", name, Source("model.py", line, "f"), "identity", "pre", (2, 3), None))  # type: ignore[arg-type]
        for i, (name, line) in enumerate(pattern)
    ]


def told(rows: list[Row]) -> list[str]:
    return [f"{index_of(group)} {name_of(group)} {len(group)}" for group in fold(rows)]


def test_short_stacks_are_shown_as_they_are() -> None:
    rows = stack(*((f"h.{i}", 3) for i in range(SCREEN)))
    assert fold(rows) == [[row] for row in rows]


def test_what_a_fold_holds_is_everything_once() -> None:
    rows = stack(
        ("stem", 1), *((f"h.{i}.{part}", line) for i in range(50) for part, line in (("a", 3), ("b", 4))), ("x", 9)
    )
    assert told(rows) == [
        "0 stem 1",
        "1 h.0.a 1",
        "2 h.0.b 1",
        "3–97 h.1…48.a 48",
        "4–98 h.1…48.b 48",
        "99 h.49.a 1",
        "100 h.49.b 1",
        "101 x 1",
    ]
    assert sorted(row.residual.index for group in fold(rows) for row in group) == list(range(102))


def test_hybrids_fold_by_their_whole_pattern() -> None:
    """Five of one kind and one of another, again and again: not six runs of the same."""
    rows = stack(*((f"h.{i}", 9 if i % 6 == 5 else 3) for i in range(60)))
    assert [line.rsplit(" ", 1)[1] for line in told(rows)] == ["1"] * 6 + ["8"] * 6 + ["1"] * 6
    assert told(rows)[11] == "11–53 h.11…53 8"


def test_a_shared_layer_keeps_its_one_name() -> None:
    assert told(stack(*[("layer.attn", 3)] * 50))[1] == "1–48 layer.attn 48"


def test_what_does_not_repeat_is_not_folded() -> None:
    rows = stack(*((f"h.{i}", i) for i in range(70)))
    assert fold(rows) == [[row] for row in rows]


def test_spans() -> None:
    assert span([1.0, 3.0, 2.0], ".2g") == "1–3"
    assert span([0.501, 0.499], ".0%") == "50%"
    assert span([1.0, float("nan")], ".2g") == "nan"
    assert span([1.0, float("inf")], ".2g") == "1–inf"
