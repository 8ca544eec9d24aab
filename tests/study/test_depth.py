"""A depth study: what is called trainable, what is written, and a tiny one run for real."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

import residuum.study.training as training
from residuum.cli import main
from residuum.errors import InputError
from residuum.model.residual import REGISTRY
from residuum.study import depth_report
from residuum.study.cell import experiment
from residuum.study.charts import depth_charts
from residuum.study.depth import Grid, depth, full_grid, quick_grid
from residuum.study.depth_report import to_html, to_json, to_markdown, write_reports
from residuum.study.store import Store

UNIGRAM = 4.5


def figures(bits: float | None, n_layers: int = 2) -> dict[str, Any]:
    start = {
        "state_variance": [0.5] * (n_layers + 1),
        "state_gradient": [10.0**-k for k in range(n_layers, -1, -1)],
        "parts": [],
        "parts_skipped": None,
        "loss": 5.5,
        "logits_std": 0.1,
    }
    return {
        "engine": "explicit",
        "final_loss": bits and bits / 2,
        "bits_per_byte": bits,
        "unigram_bits_per_byte": UNIGRAM,
        "diverged_at": None if bits is not None else 7,
        "at_start": start,
    }


Bits = Callable[[str, int, bool, int], float | None]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Bits], None]:
    """Nothing is trained: bits per byte are a function of connection, layers, warm-up and seed."""

    def install(bits: Bits) -> None:
        @experiment(version=1, resumes=True)
        def train_once(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
            model, layers = settings["model"], settings["model"]["n_layers"]
            warmup = settings["optim"]["warmup"] > 0
            found = figures(bits(model["residual"], layers, warmup, settings["run"]["seed"]), layers)
            if model["residual"] == "none":
                found["at_start"]["state_variance"][3:] = [0.0] * (layers - 2)
            return found

        monkeypatch.setattr(training, "train_once", train_once)

    return install


def typical(connection: str, n_layers: int, warmup: bool, seed: int) -> float | None:
    """The reference gains 1 bit; pre always trains, post to 4 layers or with warm-up, none never."""
    noise = 0.01 * seed
    if connection == "pre":
        return 3.5 + noise
    if connection == "post":
        return 3.8 + noise if n_layers <= 4 or (warmup and seed < 2) else None if seed == 2 else 4.4
    return 8.0 + noise


GRID = Grid(("pre", "post", "none"), (4, 8))


def test_trainable_is_what_its_criterion_says(pretend: Callable[[Bits], None], tmp_path: Path) -> None:
    pretend(typical)
    study = depth(GRID, Store(tmp_path))
    said = {(row.connection, row.n_layers, row.warmup): row.said for row in study.rows}
    assert said == {
        ("pre", 4, True): "trainable", ("pre", 4, False): "trainable",
        ("pre", 8, True): "trainable", ("pre", 8, False): "trainable",
        ("post", 4, True): "trainable", ("post", 4, False): "trainable",
        ("post", 8, True): "in 2 of 3 seeds", ("post", 8, False): "not trainable",
        ("none", 4, True): "not trainable", ("none", 4, False): "not trainable",
        ("none", 8, True): "not trainable", ("none", 8, False): "not trainable",
    }  # fmt: skip
    assert study.headline == "pre trains up to 8 layers; post trains up to 4 layers; none trains at no depth"
    assert study.reference_gain == pytest.approx(UNIGRAM - 3.51)
    post = next(row for row in study.rows if (row.connection, row.n_layers, row.warmup) == ("post", 8, True))
    assert post.diverged == 1 and post.bits is not None and post.bits.n == 2


def test_the_headline_tells_warm_up_from_none(pretend: Callable[[Bits], None], tmp_path: Path) -> None:
    pretend(lambda connection, n_layers, warmup, seed: 3.5 if connection == "pre" or warmup or n_layers < 8 else 4.5)
    study = depth(GRID, Store(tmp_path))
    assert study.headline == (
        "pre trains up to 8 layers; post and none train with warm-up up to 8 layers, without warm-up up to 4 layers"
    )


def test_a_reference_whose_seeds_disagree_judges_nobody(pretend: Callable[[Bits], None], tmp_path: Path) -> None:
    pretend(lambda connection, n_layers, warmup, seed: UNIGRAM - (0.0 if seed == 1 else 1.0))
    study = depth(GRID, Store(tmp_path))
    assert study.headline.startswith("trainable is not judged, because not every seed of the reference")
    assert {row.said for row in study.rows} == {"not judged"}


@pytest.mark.parametrize(("share", "said"), [(0.26, "trainable"), (0.24, "not trainable")])
def test_a_quarter_of_the_reference_decides(
    share: float, said: str, pretend: Callable[[Bits], None], tmp_path: Path
) -> None:
    pretend(lambda connection, n_layers, warmup, seed: UNIGRAM - (1 if connection == "pre" else share))
    study = depth(Grid(("post",), (3,)), Store(tmp_path))
    assert {row.said for row in study.rows} == {said}


@pytest.mark.parametrize(("bits", "words"), [(4.4, "gained 0.10 bits"), (None, "diverged: give a smaller --lr")])
def test_without_a_reference_nothing_is_judged(
    bits: float | None, words: str, pretend: Callable[[Bits], None], tmp_path: Path
) -> None:
    pretend(lambda connection, n_layers, warmup, seed: bits)
    study = depth(Grid(("pre", "post"), (2,)), Store(tmp_path))
    assert words in study.headline and study.headline.startswith("trainable is not judged, because")
    assert {row.said for row in study.rows} == {"not judged"}
    assert study.headline in to_html(study)


def test_shards_meet_in_one_store(pretend: Callable[[Bits], None], tmp_path: Path) -> None:
    pretend(typical)
    store = Store(tmp_path)
    first = depth(GRID, store, shard=(1, 2))
    # The reference (pre, 2 layers) is not in the grid: it is run beside it.
    assert first.missing == 20 - 1 and "19 cells are not finished yet" in to_markdown(first)
    assert any("seeds finished" in row.said for row in first.rows)
    to_html(first)
    assert depth(GRID, store, shard=(2, 2)).missing == 0
    assert json.loads(to_json(depth(GRID, store)))["missing_cells"] == 0


def test_the_charts_say_what_was_found(pretend: Callable[[Bits], None], tmp_path: Path) -> None:
    pretend(typical)
    study = depth(GRID, Store(tmp_path))
    titles = [chart["title"] for chart in depth_charts(study)]
    assert titles == [
        "with warm-up, 3 of 6 train (seeds that did, of all)",
        "without warm-up, 3 of 6 train (seeds that did, of all)",
        "with warm-up, pre is best at 8 layers: 3.51 bits per byte",
        "without warm-up, pre is best at 8 layers: 3.51 bits per byte",
        "before training, pre's gradient changes most: by a factor of 1e-08 over 8 layers",
        "before training, none's stream variance is lost after 3 of 8 layers",
    ]
    assert "(top: 5.0 or more)" in json.dumps(depth_charts(study)[2]["spec"])
    page = to_html(study)
    assert page.count('class="chart"') == len(titles) and "http://" not in page.split("<script>")[0]


def test_bad_grids_are_refused() -> None:
    for wrong, words in (
        ({"seeds": 2}, "--seeds is 2: give at least 3"),
        ({"steps": 3}, "--steps is 3"),
        ({"d_model": 20}, "--d-model is 20: give a multiple of 16"),
        ({"connections": ("pre", "preln")}, "'preln' is no residual connection"),
        ({"connections": ()}, "--connections and --depths"),
        ({"depths": (0,)}, "model.n_layers is 0"),
        ({"lr": 0.0}, "--lr is 0: give a number above 0"),
        ({"lr": math.nan}, "--lr is nan: give a number above 0"),
        ({"source": ""}, "data.source is empty"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            Grid(**{"connections": ("pre",), "depths": (2,), **wrong})
    assert set(full_grid().connections) == set(REGISTRY) and set(quick_grid().connections) <= set(REGISTRY)


@pytest.fixture(scope="module")
def real(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Grid]:
    """Ten steps on a text that repeats itself, by the command."""
    folder = tmp_path_factory.mktemp("real")
    text = folder / "text"
    text.mkdir()
    for file in text_folder.iterdir():
        (text / file.name).write_text(file.read_text())
    args = ["--connections", "pre,none", "--depths", "2,3", "--steps", "10", "--d-model", "16", "--lr", "3e-2"]
    out = ["--workers", "1", "--store", str(folder / "store"), "--format", "json", "--out", str(folder / "out.json")]
    assert main(["study", "depth", *args, "--source", str(text), *out]) == 0
    return folder, Grid(("pre", "none"), (2, 3), steps=10, d_model=16, lr=3e-2, source=str(text))


def test_a_real_study(real: tuple[Path, Grid], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, grid = real
    monkeypatch.delattr(Store, "_run")  # everything is in the store
    study = depth(grid, Store(folder / "store"))
    assert study.missing == 0 and len(study.rows) == 8
    assert json.loads((folder / "out.json").read_text()) == json.loads(to_json(study))
    assert (folder / "store" / "depth.json").read_text() == to_json(study)
    assert (folder / "store" / "depth.html").read_text() == to_html(study)
    assert not list((folder / "store" / "work").iterdir())
    for row in study.rows:
        assert row.finished == 3 and row.diverged == 0 and row.bits is not None and row.engine == "explicit"
        for start in row.at_start:
            assert len(start["state_variance"]) == len(start["state_gradient"]) == row.n_layers + 1
            assert start["parts_skipped"] is None
            assert len(start["parts"]) == (2 * row.n_layers if row.connection == "pre" else 0)
    by_seed = [start["loss"] for start in study.rows[0].at_start]
    assert len(set(by_seed)) == 3


def test_the_command_prints_a_table(real: tuple[Path, Grid], capsys: pytest.CaptureFixture[str]) -> None:
    folder, grid = real
    args = ["--connections", "pre,none", "--depths", "3,2", "--steps", "10", "--d-model", "16", "--lr", "3e-2"]
    assert main(["study", "depth", *args, "--source", grid.source, "--store", str(folder / "store")]) == 0
    text = capsys.readouterr().out
    assert "trainable?" in text and f"report: {folder}" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("report: ")) <= 100
    for wrong, words in (("2,x", "--depths is '2,x'"), ("", "--depths is ''")):
        assert main(["study", "depth", "--depths", wrong, "--store", str(folder / "store")]) == 2
        said = capsys.readouterr()
        assert words in said.err and said.out == ""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--depths", "0"], "--depths is 0: give at least 1"),
        (["--source", "nowhere"], "--source = 'nowhere' does not exist: give stdlib, a file or a folder"),
        (
            ["--source", "short.txt"],
            "model.context = 64 is longer than the text, which has ",
        ),
        (["--connections", "pre,prre"], "--connections = 'prre' is no residual connection (perhaps you meant pre): "),
        (["--launch", "ray", "--workers", "0"], "--workers is for --launch local: leave it away"),
        (["--launch", "ray"], 'pip install "residuum[ray]"'),
    ],
)
def test_bad_input_names_its_flag_before_anything_is_made(
    args: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "short.txt").write_text("\n\n".join(map(str, range(60))))
    assert main(["study", "depth", *args]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not (tmp_path / "studies").exists()


def test_a_report_of_one_row(pretend: Callable[[Bits], None], tmp_path: Path) -> None:
    pretend(typical)
    store = Store(tmp_path)
    study = depth(Grid(("none",), (1,)), store)
    assert write_reports(study, store) == tmp_path / "depth.html"
    assert study.headline == "none trains at no depth"


def test_a_report_where_nothing_was_finite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @experiment(version=1, resumes=True)
    def train_once(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
        lost = settings["model"]["residual"] == "none"
        found = figures(None if lost else 4.0)
        nothing = {"state_variance": [None] * 3, "state_gradient": [None] * 3}
        return {**found, "at_start": {**found["at_start"], **nothing}} if lost else found

    monkeypatch.setattr(training, "train_once", train_once)
    store = Store(tmp_path)
    study = depth(Grid(("none",), (2,)), store)
    assert write_reports(study, store).exists()
    assert not any("layer (0: the embedding)" in str(chart) for chart in depth_charts(study))


def test_several_may_write_the_reports_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth_report, "to_json", lambda _: "{}" * 10_000)
    monkeypatch.setattr(depth_report, "to_html", lambda _: "<p>" * 10_000)
    with ThreadPoolExecutor(4) as pool:
        for written in [pool.submit(write_reports, cast(Any, None), Store(tmp_path)) for _ in range(40)]:
            assert written.result().read_text() == "<p>" * 10_000
