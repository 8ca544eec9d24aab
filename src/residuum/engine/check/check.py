"""Which parts are checked, and by what name."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from residuum.engine.check.cases import Case, cases, config, ready, tokens
from residuum.engine.check.measure import Row, compare, measured
from residuum.engine.check.pair import Gradients
from residuum.engine.engine import make_engine
from residuum.engine.trial import try_out
from residuum.errors import InputError, meant
from residuum.model import Transformer
from residuum.model.residual import REGISTRY, residual_named

ENGINES, RESIDUAL = "engines", "residual"


def check(name: str) -> Iterator[Row]:
    """Measure what `name` stands for: `all`, a part's file, a residual connection, or one way through a part.

    `package.module:Class` is a residual connection of one's own. The same rows each time; nobody else's random numbers
    change. Raises `InputError` for a name that is none, and for one's own that raises or is not derived by hand.
    """
    if ":" in name:
        kind = residual_named(name)
        if REGISTRY.get(kind.name) is not kind:
            raise InputError(f"'{name}' is not among the parts: put @register(\"{kind.name}\") above the class")
        missing = kind.underived()
        try_out(config(residual=name), "autograd" if missing else "explicit", compare=False)  # which is done below
        if missing:
            raise InputError(
                f"'{name}' has no {' and '.join(missing)}, so that nothing can be compared: write what is missing; "
                "engine = 'autograd' trains without"
            )
        name = kind.name
    every = cases()
    chosen = [
        case for case in every if name in ("all", case.part, case.name) or (name == RESIDUAL and case.part in REGISTRY)
    ]
    if not chosen and name != ENGINES:
        raise InputError(_no_part(name, every))
    for case in chosen:
        yield from _drawn(measured(case.part, case.name, case.make))
    if name in ("all", ENGINES):
        yield from _drawn(_engines())


def parts() -> list[str]:
    """The names that stand for more than one case."""
    return [*dict.fromkeys(case.part for case in cases()), RESIDUAL, ENGINES]


def _drawn(rows: Iterator[Row]) -> list[Row]:
    """In one thread: tensors so small have nothing to share, and on a busy machine threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return list(rows)
    finally:
        torch.set_num_threads(threads)


def _engines() -> Iterator[Row]:
    """The hand-derived engine and the two others on a model that all three can run."""
    for compared, kind, other in (
        ("scalar", torch.float64, "scalar"),
        ("autograd", torch.float64, "autograd"),
        ("float32", torch.float32, "autograd"),
    ):
        shape = config(d_model=6, n_heads=2, norm="rmsnorm", activation="squared_relu")
        model, batch = ready(Transformer(shape), kind), tokens()
        gradients: list[Gradients] = []
        for engine in ("explicit", other):
            model.zero_grad()
            loss = make_engine(engine).loss_and_grads(model, batch)
            of_parameters = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            gradients.append({"loss": loss, **of_parameters})
        yield compare(ENGINES, "explicit", compared, *gradients)


def _no_part(name: str, every: list[Case]) -> str:
    near = meant(name, [*parts(), *(case.name for case in every)])
    return f"'{name}' is no part{near}: choose all, or one that residuum check --help lists"
