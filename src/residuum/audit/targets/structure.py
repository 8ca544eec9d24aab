"""The structure of a model without its weights: on meta tensors, or where those do not do, on a smaller model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_map

from residuum.audit.targets.built import Built
from residuum.audit.targets.shrink import smaller
from residuum.errors import InputError
from residuum.stream import ResidualGraph, Source, TraceError, trace

LARGEST = 300_000_000
"""Parameters of a shrunk model that are still worth the memory: 1.2 GB in float32."""

BFLOAT16 = "built in bfloat16, for float32 did not run on meta tensors"

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Traced(NamedTuple):
    """A model's residual graph, where the model is written (if not in an installed package), and notes on how."""

    graph: ResidualGraph
    source: Source | None
    notes: list[str]


def structure_of_config(config: Any, build: Callable[[Any], nn.Module], inputs: Arguments | None) -> Traced:
    """The structure of `build(config)`.

    Tried in turn: meta tensors; meta tensors in bfloat16, which some expert layers insist on; the config shrunk in all
    but its layers, on real tensors. Raises `InputError` with what the first and the last try met.
    """
    met: list[Exception] = []
    for dtype in (torch.float32, torch.bfloat16):
        try:
            traced = on_meta(lambda: Built(build(copy.deepcopy(config)).to(dtype)), inputs)  # noqa: B023 - called here
            return traced._replace(notes=[*traced.notes, *([BFLOAT16] if met else [])])
        except (TraceError, InputError) as error:
            met.append(error)
    for shrunk, changed in smaller(config):
        try:
            built = Built(_seeded(lambda: _affordable(build, shrunk)), inputs)  # noqa: B023 - called here
            graph, notes = built.run(trace)
            how = f"shrunk and run on real tensors: {changed}" if changed else "run on real tensors, of random weights"
            return Traced(graph, built.source, [f"{how}; because {_first_words(met[0])}", *notes])
        except (TraceError, InputError) as error:
            met.append(error)
    raise InputError(f"the structure could not be traced: {_first_words(met[0])}; shrunk: {_first_words(met[-1])}")


def on_meta(build: Callable[[], Built], inputs: Arguments | None) -> Traced:
    """The structure of what `build` makes on the meta device, which holds shapes and no values."""
    try:
        with torch.device("meta"):
            built = build()
    except (InputError, TraceError):
        raise
    except Exception as error:
        raise InputError(f"building on meta tensors raised {type(error).__name__}: {error}") from error
    model, built = built.model.eval().to("meta"), built.on(inputs)
    own, notes = built.inputs and to_meta(built.inputs), ["structure alone, on meta tensors", *built.notes]
    graph, notes = Built(model, own, notes).run(trace)
    return Traced(graph, built.source, notes)


def to_meta(inputs: Arguments) -> Arguments:
    """The same inputs without their values."""
    return tree_map(lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, inputs)


def _affordable(build: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in build(copy.deepcopy(config)).parameters())
    if size > LARGEST:
        raise InputError(f"even shrunk it has {size:,} parameters")
    return build(config).eval()


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"building raised {type(error).__name__}: {error}") from error


def _first_words(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if len(words) <= 200 else f"{words[:199]}…"
