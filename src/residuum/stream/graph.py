"""The residual graph of a model: its streams, and in each the residual connections in the order in which they run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from residuum.stream import ops
from residuum.stream.capture import Capture, tensors_in
from residuum.stream.connection import behind, carried, carries, mixes_streams
from residuum.stream.errors import TraceError, in_one_line
from residuum.stream.node import ACTIVATION, CONSTANT, WEIGHT, Connection, Node, Source
from residuum.stream.normalisation import normalised_by
from residuum.stream.raised import module_that_raised
from residuum.stream.untouched import untouched

Readers = dict[Node, list[Node]]


@dataclass
class Residual:
    """One residual connection.

    `module` is the module whose code adds; `branches` are those that hold the weights of each branch (several run in
    parallel), `branch` is what they have in common, and `n_parameters` counts their weights. `kind` is *identity*,
    *scaled*, *gated*, *dropout*, *projected* or *multi-stream*; `placement` is *pre*, *post*, *sandwich* or *none*.
    `inner` are connections that stand alone inside a branch of this one, such as a state-space scan's own skip.
    """

    index: int
    module: str
    branch: str
    source: Source
    kind: str
    placement: str
    shape: tuple[int, ...]
    connection: Connection = field(repr=False, compare=False)
    n_parameters: int = 0
    branches: tuple[str, ...] = ()
    inner: list[Residual] = field(default_factory=list)


@dataclass
class Stream:
    """States joined by residual connections.

    `origin` made state 0; `final_norm` reads the last state, and `read_out` is the first module with weights after it.
    """

    origin: str
    residuals: list[Residual]
    final_norm: str | None = None
    read_out: str | None = None


@dataclass
class ResidualGraph:
    """All residual streams of a model.

    `operations` tensor functions were looked at; `hidden` tensors came from functions that could not be. `nodes` are
    all that was recorded, in the order in which it ran.
    """

    streams: list[Stream]
    operations: int
    hidden: int = 0
    nodes: list[Node] = field(default_factory=list, repr=False, compare=False)

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
    model = unwrapped(model)
    capture = Capture(model)
    with untouched(model), torch.no_grad():
        run(model, capture, args, kwargs)
    return graph_of(capture)


def unwrapped(model: Any) -> nn.Module:
    """The module inside `torch.compile` and data-parallel wrappers.

    Raises `TraceError` for what is no module, or whose operations cannot be seen.
    """
    while isinstance(model, nn.Module):
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # torch.compile's
            model = inner
        else:
            break
    if not isinstance(model, nn.Module):
        raise TraceError(f"give a torch.nn.Module, not {model!r:.60}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TraceError(
            f"{type(model).__name__} is compiled by torch.jit, which hides its operations: give it uncompiled"
        )
    if any(isinstance(parameter, UninitializedParameter) for parameter in model.parameters()):
        raise TraceError(f"{type(model).__name__} has lazy parameters: run it once before")
    return model


def run(model: nn.Module, capture: Capture, args: Any, kwargs: Any) -> Any:
    """The model's own output, its run captured; what its forward pass raises comes back as one `TraceError`."""
    inputs = list(tensors_in((args, kwargs)))
    if any(value.numel() == 0 for value in inputs):
        raise TraceError("an input is empty: give at least one example")
    capture.feed(inputs)
    try:
        with _eager(), capture:
            return model(*args, **kwargs)
    except (Exception, SystemExit) as error:
        raised = in_one_line(error, module_that_raised(model, error))
        raise TraceError(f"{type(model).__name__}'s forward pass raised {raised}") from error


def _eager() -> AbstractContextManager:
    """Run compiled parts of the model uncompiled; if nothing was compiled so far, there is nothing to do."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def graph_of(capture: Capture) -> ResidualGraph:
    """Put the connections of a run in streams and say of each what it is."""
    nodes = capture.nodes
    readers = readers_of(nodes)
    found = [node.connection for node in nodes if node.connection is not None]
    completed = {connection.earlier for connection in found}  # by a branch that runs beside theirs
    chains: list[list[Connection]] = []
    chain_of: dict[Connection, list[Connection]] = {}
    for connection in found:
        if connection in completed:
            continue
        # A projected skip no longer carries the state; there the state is what it forked from.
        operands = (*connection.carries, connection.fork)
        earlier = next((chain_of[c] for each in operands if (c := _previous(each)[0]) in chain_of), None)
        chain = chain_of[connection] = [] if earlier is None else earlier
        if connection.earlier is not None:
            chain_of[connection.earlier] = chain
        if not chain:
            chains.append(chain)
        chain.append(connection)
    inner = {c: outer for chain in chains for c, outer in _detours(chain)}
    streams = [_stream([c for c in chain if c not in inner], readers) for chain in chains]
    for residual in (residual for stream in streams for residual in stream.residuals):
        own = (c for c, outer in inner.items() if outer is residual.connection)
        residual.inner += [_residual(i, c, False, readers) for i, c in enumerate(own)]
    return ResidualGraph(_with_inner(streams), len(nodes), capture.hidden, nodes)


def _detours(chain: list[Connection]) -> Iterator[tuple[Connection, Connection]]:
    """A connection whose sum only the branch of a later one reads, which itself forked before: (inner, outer)."""
    for i, outer in enumerate(chain):
        since = [c for c in chain[:i] if c.sum.index > outer.fork.index]
        if len(since) == 1 and len(outer.carries) == 1 and since[0].sum in branch_of(outer):
            yield since[0], outer


def _with_inner(streams: list[Stream]) -> list[Stream]:
    """Give connections that stand alone in a branch of another stream to the connection whose branch that is."""
    alone = {stream.residuals[0].connection.sum: stream for stream in streams if len(stream.residuals) == 1}
    for stream in streams:
        for residual in stream.residuals:
            if not alone:
                break
            inside = branch_of(residual.connection)
            for node in inside & alone.keys():
                inner = alone[node]
                if inner is not stream and inner.residuals[0].connection.fork.index >= residual.connection.fork.index:
                    residual.inner.append(inner.residuals[0])
                    del alone[node]
                    streams = [each for each in streams if each is not inner]
    return streams


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
    read_out = _read_out(norm or last.sum, readers)
    return Stream(_origin(chain[0].fork), residuals, norm.module if norm else None, read_out)


def _residual(index: int, connection: Connection, normed_after: bool, readers: Readers) -> Residual:
    inside = all(_carries_norm(write) for write in connection.writes)
    if normed_after:
        placement = "post"
    elif _norm_before(connection, readers):
        placement = "sandwich" if inside else "pre"
    else:
        placement = "post" if inside else "none"
    node = connection.sum
    inner = [behind((write,), connection.fork) for write in connection.writes]
    branches = tuple(_common_path([n.module for n in nodes if n.transforms]) for nodes in inner)
    return Residual(
        index,
        node.module,
        _common_path(list(branches)),
        connection.source,
        _kind(connection),
        placement,
        tuple(node.shape),
        connection,
        _count_parameters(set().union(*inner)),
        branches,
    )


def _count_parameters(branch: set[Node]) -> int:
    """The entries of every parameter that the branch reads, through whatever computation, each counted once."""
    pending = [node for each in branch for node in each.inputs if node.role == WEIGHT]
    seen: set[Node] = set()
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending += [each for each in node.inputs if each.role == WEIGHT]
    return sum(node.shape.numel() for node in seen if not node.inputs)


def _kind(connection: Connection) -> str:
    skip = _path(connection.skip, connection.fork)
    if connection.projected:
        return "multi-stream" if any(mixes_streams(node) for node in skip) else "projected"
    if any(_is_dropout(node) for node in skip):
        return "dropout"
    if connection.sum.op in ops.LERP:
        return "gated" if len(connection.sum.activations) > 2 else "scaled"
    normed = any(normalised_by(node) is not None for node in skip)
    products = [] if normed else [node for node in skip if node.op in ops.MULTIPLY]
    for write in connection.writes:
        steps = _steps(write)
        # Stochastic depth divides what it keeps by the chance of keeping it: that is no scale of the connection's own.
        dropped = any(_is_dropout(node) for node in steps)
        scales = [node for node in steps if node.op in ops.MULTIPLY and not _is_dropout(node)]
        products += [node for node in scales if not dropped or _learned(node)]
    if any(len(node.activations) > 1 for node in products):
        return "gated"
    return "scaled" if products or normed else "identity"


def _is_dropout(node: Node) -> bool:
    """PyTorch's own, or a product with a mask made of random numbers (stochastic depth)."""
    if node.op in ops.DROPOUT:
        return True
    if node.op not in ops.MULTIPLY:
        return False
    pending = [each for each in node.inputs if each.role == CONSTANT]
    while pending:
        each = pending.pop()
        if each.op in ops.RANDOM:
            return True
        pending += each.inputs
    return False


def _learned(product: Node) -> bool:
    return any(node.role == WEIGHT for node in product.inputs) or len(product.activations) > 1


def _path(node: Node, end: Node) -> list[Node]:
    """What the skip passes on its way from the fork `end` to the sum."""
    pending: list[list[Node]] = [[node]]
    seen = {node}
    while pending:
        path = pending.pop()
        if path[-1] is end:
            return path[:-1]
        for each in path[-1].inputs:
            if each not in seen and each.index >= end.index:
                seen.add(each)
                pending.append([*path, each])
    return []


def _steps(node: Node) -> list[Node]:
    """What a write passes unchanged but for scale on its way to the sum. A norm's own gain is no scale."""
    steps = []
    while node.connection is None and normalised_by(node) is None and carried(node):
        steps.append(node)
        node = carried(node)[0]
    return [] if normalised_by(node) is not None else steps


def _carries_norm(node: Node) -> bool:
    while normalised_by(node) is None and node.connection is None and carried(node):
        node = carried(node)[0]
    return normalised_by(node) is not None


def _previous(node: Node) -> tuple[Connection | None, bool]:
    """The connection whose sum `node` still is, give or take norms and activation functions; is there a norm?"""
    pending = [(node, False)]
    seen = set()
    while pending:
        node, normed = pending.pop()
        if node.connection is not None:
            return node.connection, normed
        if (node, normed) in seen:
            continue
        seen.add((node, normed))
        value = normalised_by(node)
        operands = carried(node)
        if value is not None:
            pending.append((value, True))
        elif operands or node.op in ops.SUM:  # what is added to a state on its way (positions, say) does not end it
            pending += [(operand, normed) for operand in reversed(operands or node.activations)]
        elif len(node.activations) == 1 and node.activations[0].shape == node.shape and not node.transforms:
            pending.append((node.activations[0], normed))
    return None, False


def _origin(node: Node) -> str:
    """The module that made state 0: the nearest one behind it with weights, such as the token embedding."""
    while node.activations and not node.transforms:
        node = node.activations[0]
    return node.module


def _read_out(node: Node, readers: Readers) -> str | None:
    """The module of the first operation with weights that reads the last state."""
    pending, seen = [node], {node}
    while pending:
        node = min(pending, key=lambda each: each.index)
        pending.remove(node)
        if node.transforms and len(seen) > 1:
            return node.module
        new = [reader for reader in readers[node] if reader not in seen and reader.role == ACTIVATION]
        seen.update(new)
        pending += new
    return None


def branch_of(connection: Connection) -> set[Node]:
    """The nodes between fork and writes, the writes among them."""
    return behind(connection.writes, connection.fork)


def _norm_before(connection: Connection, readers: Readers) -> bool:
    """Whether every first operation of the branch with weights reads the stream through a norm."""
    branch = branch_of(connection)
    pending, seen, found = [connection.fork], set(), False
    while pending:
        for reader in readers[pending.pop()]:
            if reader not in branch or reader in seen:
                continue
            seen.add(reader)
            if reader.transforms:
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
            if reader in seen or reader.transforms or reader.connection is not None:
                continue
            seen.add(reader)
            value = normalised_by(reader)
            if value is not None and carries(value, node):
                return reader
            if value is None:
                pending.append(reader)
    return None


def _common_path(names: list[str]) -> str:
    """The longest module path that all `names` share."""
    common = []
    for parts in zip(*(name.split(".") for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)
