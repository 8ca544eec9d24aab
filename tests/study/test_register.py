"""The register of claims, and the one about the identity path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import residuum.study.register as register
from residuum.cli import main
from residuum.errors import InputError
from residuum.model import ModelConfig, Transformer
from residuum.study.cell import Cell
from residuum.study.claims import CLAIMS, Outcome, Undecided
from residuum.study.claims.identity_gradient import CLAIM, _gaps_of_additions
from residuum.study.register import chosen, judge
from residuum.study.store import Store


class Doubles:
    """A claim about squares."""

    id = "doubles"
    statement = "the square of x | is 2 x"
    source = "nobody"
    experiment = metric = threshold = "x² = 2x for every x"

    def cells(self, quick: bool) -> list[Cell]:
        return [Cell("experiments:square", {"x": x}) for x in ((2,) if quick else (2, 3))]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        right = [f["y"] for f in figures] == ([4] if quick else [4, 6])
        return Outcome("holds under x = 2" if right else "does not hold", {"y": figures[-1]["y"]}, "3² is 9")


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register, "CLAIMS", [CLAIM, Doubles()])


def test_every_claim_says_what_it_is() -> None:
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        words = (claim.id, claim.statement, claim.source, claim.experiment, claim.metric, claim.threshold)
        assert all(isinstance(each, str) and each and "\n" not in each for each in words)
        assert set(claim.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        for quick in (True, False):
            cells = claim.cells(quick)
            assert cells and len({cell.key for cell in cells}) == len(cells)


def test_the_identity_path_is_exact_and_a_scaled_skip_is_not(tmp_path: Path) -> None:
    (found,) = judge([CLAIM], Store(tmp_path), quick=True)
    assert found.outcome is not None and found.said == "holds"
    assert found.outcome.figures == {"connections": 8, "explicit": 0, "autograd": 0}
    worse = [
        {"connections": 8, "explicit": 0.0, "autograd": 0.0},
        {"connections": 8, "explicit": 0.0, "autograd": 1e-17},
    ]
    assert CLAIM.judge(worse, quick=True).outcome == "does not hold"

    config = ModelConfig(vocab_size=9, context=4, d_model=8, n_layers=1, n_heads=2, residual="post")
    tokens = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(AssertionError):  # a sum inside a norm is not what leaves a Post-LN connection
        _gaps_of_additions(Transformer(config).double(), (tokens, tokens))


def test_claims_are_chosen_by_id(doubles: None) -> None:
    assert [claim.id for claim in chosen()] == ["doubles", "identity-gradient"]
    assert [claim.id for claim in chosen("identity-gradient, doubles,doubles")] == ["identity-gradient", "doubles"]
    with pytest.raises(InputError, match=r"no claim 'double' \(perhaps you meant doubles\): .*--help lists"):
        chosen("double")


def test_a_claim_waits_for_its_missing_cells(doubles: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    (half,) = judge(chosen("doubles"), store, shard=(1, 2))
    assert (half.said, half.outcome, half.missing) == ("not judged", None, 1)
    assert half.to_dict()["outcome"] == "not judged" and half.to_dict()["missing_cells"] == 1
    (whole,) = judge(chosen("doubles"), store, shard=(2, 2))
    assert (whole.said, whole.missing) == ("does not hold", 0)
    (quick,) = judge(chosen("doubles"), store, quick=True)
    assert quick.said == "holds under x = 2"


def test_seconds_of_a_cell_that_two_claims_share_count_once(doubles: None, tmp_path: Path) -> None:
    (alone,) = judge(chosen("doubles"), Store(tmp_path))
    first, again = judge([*chosen("doubles"), *chosen("doubles")], Store(tmp_path))
    assert (first.seconds, again.seconds) == (alone.seconds, 0)


def test_an_experiment_that_says_nothing_says_so(tmp_path: Path) -> None:
    class Unsure(type(CLAIMS[0])):
        def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
            raise Undecided("the reference learned nothing")

    claim = Unsure()
    claim.cells = lambda quick: []
    (found,) = judge([claim], Store(tmp_path))
    assert (found.said, found.sentence) == ("not judged", "the reference learned nothing")
    assert found.to_dict()["outcome"] == "not judged"


def test_an_outcome_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="no outcome"):
        Outcome("perhaps", {}, "")


def study(*args: str) -> int:
    """In this process, where the claims that a test made up are known."""
    return main(["study", *args, *(["--workers", "1"] if args[:1] == ("claims",) else [])])


def test_the_command_writes_json_alone(
    doubles: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert study("claims", "--quick", "--format", "json") == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["schema"] == "residuum.study.claims/1" and report["quick"] is True
    first, second = report["claims"]
    assert (first["id"], first["outcome"], first["figures"]) == ("doubles", "holds under x = 2", {"y": 4})
    assert {"statement", "source", "experiment", "metric", "threshold", "sentence", "seconds"} <= set(second)
    assert said.err.splitlines()[-1] == "cell 2/2  identity-gradient"
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "studies" / "cells").iterdir()) == [
        "both_engines",
        "square",
    ]
    assert study("claims", "--quick", "--format", "json", "--out", "claims.json") == 0
    again = capsys.readouterr()
    assert again.out == "claims.json\n" and again.err == "cell 2/2\n"
    assert json.loads((tmp_path / "claims.json").read_text()) == report


def test_the_command_prints_tables(doubles: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study("claims", "--only", "doubles", "--store", str(tmp_path)) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert "does not hold" in text and "0 of 1 claims hold" in text
    assert study("claims", "--only", "doubles", "--store", str(tmp_path), "--format", "md") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("| [")] == [
        "| [the square of x \\| is 2 x](#doubles) | does not hold |"
    ]
    assert "## doubles" in lines and "0 of 1 claims hold" in lines[2]
    assert lines[4].startswith("`residuum study claims --only doubles --format md` writes this page: ")
    assert [line.split(":")[0] for line in lines if line.startswith("- ")] == [
        f"- *{field}*" for field in ("source", "experiment", "metric", "threshold")
    ]
    assert lines[-1].startswith("**does not hold**: ")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "which study? choose"),
        (("depths",), "no study 'depths'"),
        (("claims", "--only", "x"), "no claim 'x'"),
        (("claims", "--shard", "3/2"), "--shard is '3/2'"),
        (("claims", "--format", "html"), "--format"),
        (("claims", "--out", "x.txt"), "--out goes with"),
        (("claims", "--store", "file"), "file is a file"),
        (("claims", "--store", "file/x"), "file: it is no folder: choose another place"),
        (("claims", "--launch", "moon"), "--launch"),
        (("claims", "--quik"), "--quick"),
    ],
)
def test_bad_input_is_one_line(
    args: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert study(*args) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and words in said.err
    assert not (tmp_path / "studies").exists()


def test_who_stops_a_study_is_told_it_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("residuum.cli.study.judge", stop)
    assert study("claims", "--store", str(tmp_path / "s")) == 130
    assert "finished cells are kept: the same command goes on" in capsys.readouterr().err


def test_a_stopped_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doubles: None) -> None:
    store = Store(tmp_path)

    def stop(progress: Any) -> None:
        if progress.cell is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(chosen("doubles"), store, progress=stop)
    finished = [store.figures(cell) is not None for cell in Doubles().cells(quick=False)]
    assert finished == [True, False]
    assert judge(chosen("doubles"), store)[0].missing == 0
