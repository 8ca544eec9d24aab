"""The residual graph of a model: its streams, and in each the residual connections in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from residuum.stream import ops
from residuum.stream.capture import Capture, tensors_in
from residuum.stream.connection import carried
from residuum.stream.errors import TraceError
from residuum.stream.node import Connection, Node, Source
from residuum.stream.normalisation import normalised_by
from residuum.stream.raised import module_that_raised
from residuum.stream.untouched import untouched

Readers = dict[Node, list[Node]]


@dataclass
class Residual:
    """One residual connection.

    `module` is the module whose code adds, `branch` the one that holds the branch's weights. `kind` is *identity*,
    *scaled*, *gated*, *dropout* or *projected*; `placement` is *pre*, *post*, *sandwich* or *none*.
    """

    index: int
    module: str
    branch: str
    source: Source
    kind: str
    placement: str
    shape: tuple[int, ...]
    connection: Connection = field(repr=False, compare=False)


@dataclass
class Stream:
    """States joined by residual connections. `origin` made state 0; `final_norm` reads the last state."""

    origin: str
    residuals: list[Residual]
    final_norm: str | None = None


@dataclass
class ResidualGraph:
    """All residual streams of a model.

    `operations` tensor functions were looked at; `hidden` tensors came from functions that could not be.
    """

    streams: list[Stream]
    operations: int
    hidden: int = 0

    @property
    def residuals(self) -> Iterator[Residual]:
        """Every connection of every stream."""
        for stream in self.streams:
            yield from stream.residuals

    def __str__(self) -> str:
        lines = []
        for number, stream in enumerate(self.streams):
            lines.append(f"stream {number} from {stream.origin or 'the input'}: {len(stream.residuals)} connections")
            lines += [
                f"  {r.index:>4}  {r.kind:<9} {r.placement:<8} {r.branch or r.module}  {r.source}"
                for r in stream.residuals
            ]
        return "\n".join(lines) or "no residual connection"


def trace(model: nn.Module, *args: Any, **kwargs: Any) -> ResidualGraph:
    """Run `model(*args, **kwargs)` once, without gradients, and return its residual graph.

    Works on real and on meta tensors. The model is left as it was found: its mode, gradients, buffers, and the state of
    the random generators. Raises `TraceError` if the forward pass itself raises, or hides its operations.
    """
    check_traceable(model)
    capture = Capture(model)
    with untouched(model), torch.no_grad():
        run(model, capture, args, kwargs)
    return graph_of(capture)


def check_traceable(model: Any) -> None:
    """Raises `TraceError` for what is no module, or whose operations are compiled out of sight."""
    if not isinstance(model, nn.Module):
        raise TraceError(f"give a torch.nn.Module, not {model!r:.60}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TraceError(
            f"{type(model).__name__} is compiled by torch.jit, which hides its operations: give it uncompiled"
        )
    if any(isinstance(parameter, UninitializedParameter) for parameter in model.parameters()):
        raise TraceError(f"{type(model).__name__} has lazy parameters: run it once before")


def run(model: nn.Module, capture: Capture, args: Any, kwargs: Any) -> Any:
    """The model's own output, its run captured; what its forward pass raises comes back as one `TraceError`."""
    inputs = list(tensors_in((args, kwargs)))
    if any(value.numel() == 0 for value in inputs):
        raise TraceError("an input is empty: give at least one example")
    capture.feed(inputs)
    try:
        with capture:
            return model(*args, **kwargs)
    except (Exception, SystemExit) as error:
        where = f" in {path}" if (path := module_that_raised(model, error)) else ""
        raise TraceError(
            f"{type(model).__name__}'s forward pass raised {type(error).__name__}{where}: {error}"
        ) from error


def graph_of(capture: Capture) -> ResidualGraph:
    """Put the connections of a run in streams and say of each what it is."""
    nodes = capture.nodes
    readers = readers_of(nodes)
    chains: list[list[Connection]] = []
    chain_of: dict[Connection, list[Connection]] = {}
    for connection in (node.connection for node in nodes):
        if connection is None:
            continue
        # A projected skip no longer carries the state; there the state is what it forked from.
        earlier = _previous(connection.skip)[0] or _previous(connection.fork)[0]
        chain = chain_of.get(earlier) if earlier is not None else None
        if chain is None:
            chain = []
            chains.append(chain)
        chain.append(connection)
        chain_of[connection] = chain
    return ResidualGraph([_stream(chain, readers) for chain in chains], len(nodes), capture.hidden)


def readers_of(nodes: list[Node]) -> Readers:
    """Who reads each node's result."""
    readers: Readers = {node: [] for node in nodes}
    for node in nodes:
        for parent in set(node.inputs):
            readers[parent].append(node)
    return readers


def _stream(chain: list[Connection], readers: Readers) -> Stream:
    normed_after = {earlier for earlier, normed in (_previous(c.fork) for c in chain) if earlier is not None and normed}
    last, norm = chain[-1], _norm_reading(chain[-1].sum, readers)
    # A norm after the last state belongs to the connection where the connection before it has one too (post-norm);
    # where not, it is the stream's final norm.
    if norm is not None and (len(chain) < 2 or chain[-2] in normed_after) and not _norm_before(last, readers):
        normed_after.add(last)
        norm = None
    residuals = [_residual(i, c, c in normed_after, readers) for i, c in enumerate(chain)]
    return Stream(_origin(chain[0].fork), residuals, norm.module if norm else None)


def _residual(index: int, connection: Connection, normed_after: bool, readers: Readers) -> Residual:
    inside = _carries_norm(connection.write)
    if normed_after:
        placement = "post"
    elif _norm_before(connection, readers):
        placement = "sandwich" if inside else "pre"
    else:
        placement = "post" if inside else "none"
    node = connection.sum
    branch = _common_path([n.module for n in branch_of(connection) if n.parametric])
    shape = tuple(node.shape)
    return Residual(index, node.module, branch, connection.source, _kind(connection), placement, shape, connection)


def _kind(connection: Connection) -> str:
    if connection.projected:
        return "projected"
    on_skip = _steps(connection.skip, connection.fork)
    if any(node.op in ops.DROPOUT for node in on_skip):
        return "dropout"
    if connection.sum.op in ops.LERP:
        return "gated" if len(connection.sum.activations) > 2 else "scaled"
    products = [node for node in on_skip + _steps(connection.write, None) if node.op in ops.MULTIPLY]
    if any(len(node.activations) > 1 for node in products):
        return "gated"
    return "scaled" if products else "identity"


def _steps(node: Node, end: Node | None) -> list[Node]:
    """What a value passes through unchanged but for scale on its way to the sum. A norm's own gain is no scale."""
    steps = []
    while node is not end and node.connection is None and normalised_by(node) is None and carried(node):
        steps.append(node)
        node = carried(node)[0]
    return [] if end is None and normalised_by(node) is not None else steps


def _carries_norm(node: Node) -> bool:
    while normalised_by(node) is None and node.connection is None and carried(node):
        node = carried(node)[0]
    return normalised_by(node) is not None


def _previous(node: Node) -> tuple[Connection | None, bool]:
    """The connection whose sum `node` still is, give or take norms and activation functions; is there a norm?"""
    normed = False
    while node.connection is None:
        value = normalised_by(node)
        normed = normed or value is not None
        if value is not None:
            node = value
        elif carried(node):
            node = carried(node)[0]
        elif len(node.activations) == 1 and node.activations[0].shape == node.shape and not node.parametric:
            node = node.activations[0]
        else:
            return None, normed
    return node.connection, normed


def _origin(node: Node) -> str:
    """The module that made state 0: the nearest one behind it with weights, such as the token embedding."""
    while node.activations and not node.parametric:
        node = node.activations[0]
    return node.module


def branch_of(connection: Connection) -> set[Node]:
    """The nodes between fork and write, the write among them."""
    pending, seen = [connection.write], set()
    while pending:
        node = pending.pop()
        if node in seen or node.index <= connection.fork.index:
            continue
        seen.add(node)
        pending += node.activations
    return seen


def _norm_before(connection: Connection, readers: Readers) -> bool:
    """Whether every first parametric operation of the branch reads the stream through a norm."""
    branch = branch_of(connection)
    pending, seen, found = [connection.fork], set(), False
    while pending:
        for reader in readers[pending.pop()]:
            if reader not in branch or reader in seen:
                continue
            seen.add(reader)
            if reader.parametric:
                return False
            if normalised_by(reader) is not None:
                found = True
            else:
                pending.append(reader)
    return found


def _norm_reading(node: Node, readers: Readers) -> Node | None:
    """The norm that reads `node` itself, if any: between them stands nothing but the norm's own arithmetic."""
    pending, seen = [node], set()
    while pending:
        for reader in readers[pending.pop(0)]:
            if reader in seen or reader.parametric or reader.connection is not None:
                continue
            seen.add(reader)
            value = normalised_by(reader)
            if value is not None and _carries(value, node):
                return reader
            if value is None:
                pending.append(reader)
    return None


def _carries(value: Node, node: Node) -> bool:
    while value is not node and value.index > node.index and carried(value):
        value = carried(value)[0]
    return value is node


def _common_path(names: list[str]) -> str:
    """The longest module path that all `names` share."""
    common = []
    for parts in zip(*(name.split(".") for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)
