"""A residual connection of one's own that is at fault is named, with its line, before anything is made for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from residuum.cli import main
from residuum.engine.trial import try_out
from residuum.errors import InputError
from residuum.model import ModelConfig
from residuum.model.residual import REGISTRY, residual_named

CLASS = """import torch
from residuum.model.residual import Optim, Residual, register
from residuum.model.residual.pre import Pre

@register("own")
class Own({base}):
"""
FORWARD = """
    def forward(self, x, branch, *args):
        return x + branch(x, *args)
"""
EXPLICIT_FORWARD = """
    def explicit_forward(self, x, branch, *args):
        write, saved = branch.explicit_forward(x, *args)
        return x + write, (branch, saved)
"""
BACKWARD = """
    def explicit_backward(self, dy, saved, parts=None):
        branch, saved = saved
        return dy + branch.explicit_backward(dy, saved)
"""

SHAPE = {"vocab_size": 31, "context": 6, "d_model": 12, "n_heads": 3, "n_layers": 2}


@pytest.fixture(autouse=True)
def _forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("their_own", None)
    REGISTRY.pop("own", None)


def write(*methods: str, base: str = "Residual") -> str:
    Path("their_own.py").write_text(CLASS.format(base=base) + "".join(methods))
    return "their_own:Own"


def line_of(text: str) -> int:
    lines = Path("their_own.py").read_text().splitlines()
    return 1 + next(number for number, line in enumerate(lines) if text in line)


@pytest.mark.parametrize(
    ("method", "engine", "message", "line"),
    [
        (
            FORWARD.replace("x +", "self.scale * x +"),
            "autograd",
            " raised AttributeError: 'Own' object has no attribute 'scale' ({}, in forward): mend it",
            "self.scale",
        ),
        (
            FORWARD.replace("x +", "x[..., :5] +"),
            "autograd",
            " raised RuntimeError: The size of tensor a (5) must match the size of tensor b (12) at non-singleton "
            "dimension 2 ({}, in forward): mend it",
            "x[..., :5]",
        ),
        (
            FORWARD.replace("return", "return 1,"),
            "autograd",
            ": forward returned tuple ({}, forward): return a tensor of [2, 6, 12]",
            "def forward",
        ),
        (
            FORWARD.replace("return", ""),
            "autograd",
            ": forward returned NoneType ({}, forward): return a tensor of [2, 6, 12]",
            "def forward",
        ),
        (
            FORWARD.replace(", *args", ""),
            "autograd",
            " raised TypeError: Own.forward() takes 3 positional arguments but 6 were given ({}, forward): mend it",
            "def forward",
        ),
        ("    pass\n", "autograd", " has no forward ({}, forward): write it", '@register("own")'),
        (
            FORWARD + "    def __init__(self, *args):\n        super().__init__(*args)\n"
            "        self.a = torch.nn.Parameter(torch.tensor([1.0, torch.nan]))\n",
            "explicit",
            ": __init__ leaves blocks.0.attn_residual.a with NaN or infinity ({}, __init__): give it numbers to begin "
            "with",
            "def __init__",
        ),
        (
            FORWARD + "    @classmethod\n    def optim(cls, model):\n        return {'head.weight': 2.0}\n",
            "autograd",
            ": optim returned {{'head.weight': 2.0}} ({}, optim): return a dict, an Optim by a parameter's name",
            "@classmethod",
        ),
        (
            FORWARD + "    @classmethod\n    def optim(cls, model):\n        return {'embeding.weight': Optim(2)}\n",
            "autograd",
            ": optim asks for 'embeding.weight', which is no parameter ({}, optim): give one (perhaps you "
            "meant embedding.weight)",
            "@classmethod",
        ),
        (
            FORWARD + "    @classmethod\n    def optim(cls, model):\n"
            "        return {'embedding.weight': Optim(float('nan'))}\n",
            "autograd",
            ": optim asks for Optim(lr=nan, eps=1.0, decay=True) of 'embedding.weight' ({}, optim): give finite "
            "factors, at least 0",
            "@classmethod",
        ),
        (  # among many places, of which the branches write little at the start
            FORWARD.replace("branch(x,", "branch(x + 0.1 * x.mean(1, keepdim=True),"),
            "autograd",
            ": forward lets a place see later ones ({}, forward): use each place's own state alone",
            "def forward",
        ),
        (
            FORWARD + "    def __init__(self, config):\n        super().__init__(config, 0)\n",
            "autograd",
            " raised TypeError: Own.__init__() takes 2 positional arguments but 3 were given ({}, __init__): mend it",
            "def __init__",
        ),
        (
            FORWARD + "    @classmethod\n    def optim(cls, model):\n        return 1 / 0\n",
            "autograd",
            " raised ZeroDivisionError: division by zero ({}, in optim): mend it",
            "1 / 0",
        ),
        (
            FORWARD + "    def end(self, state):\n        return state[..., 1:]\n",
            "autograd",
            ": end returned [2, 6, 11] ({}, end): return a tensor of [2, 6, 12]",
            "def end",
        ),
        (  # a whole text it can read, and cannot continue one
            FORWARD.replace("branch(x", "branch(x + 0 * x.unfold(1, 2, 1).sum()"),
            "autograd",
            " raised RuntimeError: maximum size for tensor at dimension 1 is 1 but size is 2 ({}, in forward): mend it",
            "unfold",
        ),
        (
            FORWARD + EXPLICIT_FORWARD.replace(", (branch, saved)", "") + BACKWARD,
            "explicit",
            ": explicit_forward returned [2, 6, 12] ({}, explicit_forward): return a pair, the result and what its "
            "backward needs",
            "def explicit_forward",
        ),
        (
            FORWARD + EXPLICIT_FORWARD + BACKWARD.replace("dy +", "dy.sum() + dy.sum(-1) +").replace("return", "0;"),
            "explicit",
            " raised RuntimeError: The size of tensor a (6) must match the size of tensor b (12) at non-singleton "
            "dimension 2 ({}, in explicit_backward): mend it",
            "dy.sum()",
        ),
        (
            FORWARD.replace("x +", "x + x.mean(1, keepdim=True) +"),
            "autograd",
            ": forward lets a place see later ones ({}, forward): use each place's own state alone",
            "def forward",
        ),
        (
            FORWARD + EXPLICIT_FORWARD + BACKWARD.replace("dy +", "dy / 2 +"),
            "explicit",
            ": explicit_backward gives other gradients than autograd ({}, explicit_backward): see residuum check "
            "their_own:Own",
            "def explicit_backward",
        ),
        (
            FORWARD.replace("x + branch(x, *args)", "(x + branch(x, *args))[:, :1]") + EXPLICIT_FORWARD + BACKWARD,
            "explicit",
            ": forward returned [2, 1, 12] ({}, forward): return a tensor of [2, 6, 12]",
            "def forward",
        ),
    ],
)
def test_its_line_is_named(method: str, engine: str, message: str, line: str) -> None:
    config = ModelConfig(**SHAPE, residual=write(method))
    before = torch.get_rng_state()
    with pytest.raises(InputError) as raised:
        try_out(config, engine)
    assert str(raised.value) == f"'their_own:Own'{message.format(f'their_own.py:{line_of(line)}')}"
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_changed_in_place_is_found_by_the_explicit_engine_too() -> None:
    method = FORWARD.replace("return x + branch(x, *args)", "x += branch(x, *args); return x")
    with pytest.raises(InputError, match=r"modified by an inplace operation.*\(their_own\.py:\d+, forward\): mend it"):
        try_out(ModelConfig(**SHAPE, residual=write(method, EXPLICIT_FORWARD, BACKWARD)), "explicit")


def test_a_module_may_leave_or_move() -> None:
    Path("their_own.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(InputError, match=r"importing their_own raised SystemExit \(3\): mend it"):
        residual_named("their_own:Own")
    name = write(FORWARD)
    Path("their_own.py").write_text("import os\nos.chdir('/')\n" + Path("their_own.py").read_text())
    assert residual_named(name).name == "own"


def test_an_encoder_sees_all_places() -> None:
    own = write(FORWARD.replace("x +", "x + x.mean(1, keepdim=True) +"))
    try_out(ModelConfig(**SHAPE, residual=own, causal=False), "autograd")


def test_a_sound_one_is_let_pass() -> None:
    try_out(ModelConfig(**SHAPE, residual=write(FORWARD, EXPLICIT_FORWARD, BACKWARD)), "explicit")


def test_several_streams_may_have_any_state() -> None:
    several = """
    def begin(self, x):
        return x, [x]

    def forward(self, state, branch, *args):
        x, seen = state
        y = x + branch(x, *args)
        return y, [*seen, y]

    def end(self, state):
        return sum(state[1])
"""
    try_out(ModelConfig(**SHAPE, residual=write(several)), "autograd")


def test_memory_is_not_its_fault() -> None:
    try_out(ModelConfig(**SHAPE, residual=write(FORWARD.replace("x +", "x.new_empty(2**60) +"))), "autograd")


@pytest.mark.parametrize(
    ("methods", "base", "missing"),
    [
        ((FORWARD,), "Residual", ["explicit_forward", "explicit_backward"]),
        ((FORWARD, EXPLICIT_FORWARD), "Residual", ["explicit_backward"]),
        ((FORWARD, BACKWARD), "Residual", ["explicit_forward"]),
        ((FORWARD, EXPLICIT_FORWARD, BACKWARD), "Residual", []),
        ((FORWARD,), "Pre", ["explicit_forward", "explicit_backward"]),  # Pre's own are not of this forward
        (("    identity_at_start = True\n",), "Pre", []),
        (
            (FORWARD, EXPLICIT_FORWARD, BACKWARD, "    def end(self, x):\n        return 2 * x\n"),
            "Residual",
            ["explicit_end", "explicit_end_backward"],
        ),
    ],
)
def test_what_nobody_has_derived(methods: tuple[str, ...], base: str, missing: list[str]) -> None:
    assert residual_named(write(*methods, base=base)).underived() == missing


@pytest.mark.parametrize("name", REGISTRY)
def test_ours_are_derived(name: str) -> None:
    assert REGISTRY[name].underived() == []


def trained(capsys: pytest.CaptureFixture[str], text: Path, own: str, *args: str) -> tuple[int, str]:
    few = {"run.steps": 2, "run.sample-tokens": 2, "model.context": 8, "model.d-model": 8, "model.n-heads": 2}
    given = [f"--{name}={value}" for name, value in {**few, "data.source": text, "model.residual": own}.items()]
    status = main(["train", "quick", *given, *args])
    return status, capsys.readouterr().err


def test_training_leaves_nothing_behind(text_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, error = trained(capsys, text_folder, write(FORWARD.replace("x +", "nowhere +")))
    assert status == 2 and error.count("\n") == 1
    assert "NameError: name 'nowhere' is not defined (their_own.py:9, in forward)" in error
    assert not Path("runs").exists()


def test_a_fault_of_a_later_step_is_one_line_and_the_checkpoint_stays(
    text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = """
    calls = 0

    def forward(self, x, branch, *args):
        Own.calls += 1
        if Own.calls > 80:
            raise ValueError("enough")
        return x + branch(x, *args)
"""
    run = ("--run.steps", "9", "--run.checkpoint-every", "1", "--run.eval-every", "9")
    status, error = trained(capsys, text_folder, write(later), *run)
    assert status == 2
    line = line_of("raise ValueError")
    assert error == f"residuum: 'their_own:Own' raised ValueError: enough (their_own.py:{line}, in forward): mend it\n"
    assert list(Path("runs/quick/checkpoints").iterdir())


def test_forward_alone_trains_by_autograd(text_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = write(FORWARD)
    status, error = trained(capsys, text_folder, own, "--engine", "explicit")
    assert status == 2 and error.count("\n") == 1
    assert "write its explicit_forward and explicit_backward, or set engine to autograd" in error
    assert trained(capsys, text_folder, own)[0] == 0


def test_code_that_changed_since_is_noticed(text_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = write(FORWARD)

    def changed(*methods: str) -> None:
        sys.modules.pop("their_own")
        write(*methods)

    assert trained(capsys, text_folder, own)[0] == 0
    verbs = (["train", "--resume", "runs/quick"], ["generate", "runs/quick"], ["audit", "runs/quick"])
    told = "the code of model.residual = 'their_own:Own' has changed since runs/quick began"
    for verb in verbs:
        main(verb)
        assert "has changed" not in "".join(capsys.readouterr())
    changed(FORWARD.replace("x +", "2 * x +"))
    statuses = [main(verb) for verb in verbs]
    shown = capsys.readouterr()
    assert statuses[:2] == [2, 0]
    assert [line for line in shown.err.splitlines() if told in line] == [
        f"residuum: {told}: restore it, or start a new run with "
        "residuum train runs/quick/recipe.toml --run.dir ANOTHER",
        f"residuum: {told}: its weights were trained with another",
    ]
    assert told in " ".join(shown.out.split())
    changed(FORWARD.replace("x +", "nowhere +"))
    for verb in verbs[1:]:
        assert main(verb) == 2
        assert "(their_own.py:9, in forward): mend it" in capsys.readouterr().err


def test_a_study_makes_no_store_for_it(text_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = write(FORWARD.replace("x +", "nowhere +"))
    for study in (["depth", "--connections", f"pre,{own}", "--source", str(text_folder)], ["compare", "pre", own]):
        assert main(["study", *study]) == 2
        error = capsys.readouterr().err
        assert "'their_own:Own' raised NameError" in error and error.count("\n") == 1
        assert not Path("studies").exists()


def test_check_names_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", write(FORWARD.replace("x +", "nowhere +"))]) == 2
    assert "(their_own.py:9, in forward)" in capsys.readouterr().err
