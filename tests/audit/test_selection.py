from __future__ import annotations

import pytest

from residuum.audit import Audit, judge
from residuum.audit.rules import RULES
from residuum.audit.selection import chosen_rules
from residuum.errors import InputError

ALL = [rule.code for rule in RULES]


@pytest.mark.parametrize(
    ("select", "ignore", "left"),
    [
        ([], [], ALL),
        (["RS2"], [], [code for code in ALL if code.startswith("RS2")]),
        (["RS301", "RS101"], [], ["RS101", "RS301"]),
        ([], ["RS2", "RS3"], [code for code in ALL if code.startswith("RS1")]),
        (["RS101", "RS102"], ["RS102"], ["RS101"]),
        (["RS203"], ["RS2"], ["RS203"]),  # the longer code wins
        (["R"], ["RS"], None),
        ([], ["RS"], None),
    ],
)
def test_codes_and_beginnings(select: list[str], ignore: list[str], left: list[str] | None) -> None:
    if left is None:
        with pytest.raises(InputError, match="leave no rule to ask"):
            chosen_rules(select, ignore)
    else:
        assert [rule.code for rule in chosen_rules(select, ignore)] == left


@pytest.mark.parametrize("code", ["RS9", "rs2", "", "RS3011", "E501"])
def test_unknown_codes_are_named(code: str) -> None:
    for given in ({"select": [code]}, {"ignore": [code]}):
        with pytest.raises(InputError, match=f"no rule '{code}': choose of RS101, "):
            chosen_rules(**given)


def test_only_the_chosen_are_asked(faults: Audit) -> None:
    assert {f.code for f in faults.findings} >= {"RS103", "RS203"}
    audit = judge(faults.seen, "it", select=["RS203"])
    assert {f.code for f in audit.findings} == {"RS203"}
    assert audit.left_out == [code for code in ALL if code != "RS203"]
    assert audit.to_dict()["left_out"] == audit.left_out
