"""The residual graph of a model: its streams, and in each the residual connections in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from residuum.stream import ops
from residuum.stream.capture import Capture
from residuum.stream.carry import carried
from residuum.stream.connection import behind, branch_of
from residuum.stream.kind import kind_of
from residuum.stream.node import ACTIVATION, Connection, Node, Source
from residuum.stream.normalisation import normalised_by
from residuum.stream.placement import Readers, norm_before, norm_reading, placement_of, readers_of
from residuum.stream.projection import mixes_streams, state_of
from residuum.stream.weights import leaves


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
    detours = dict(outer_and_inner for chain in chains for outer_and_inner in _detours(chain))
    inside = set(detours.values())
    streams = [_stream([c for c in chain if c not in inside], readers) for chain in chains]
    for residual in (residual for stream in streams for residual in stream.residuals):
        if residual.connection in detours:
            residual.inner.append(_residual(0, detours[residual.connection], False, readers))
    return ResidualGraph(_with_inner(streams), len(nodes), capture.hidden, nodes)


def _detours(chain: list[Connection]) -> Iterator[tuple[Connection, Connection]]:
    """(outer, inner): a connection whose sum only the branch of the next one reads, which itself forked before it."""
    for i, outer in enumerate(chain[1:], 1):
        inner = chain[i - 1]
        forked_before = inner.sum.index > outer.fork.index
        alone = i < 2 or chain[i - 2].sum.index <= outer.fork.index
        if forked_before and alone and len(outer.carries) == 1 and inner.sum in branch_of(outer):
            yield outer, inner


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


def _stream(chain: list[Connection], readers: Readers) -> Stream:
    # A projected skip may read the norm of its own branch, as in pre-activation ResNets.
    forks = {c: _previous(c.fork) for c in chain if not c.projected}
    normed_after = {earlier for earlier, normed in forks.values() if earlier is not None and normed}
    for c in forks:  # a state that nothing but the skip reads, as where a second stream joins the first at its end
        skipped = [each for each in map(_previous, c.carries) if each[0] is not forks[c][0]]
        normed_after.update(earlier for earlier, normed in skipped if earlier is not None and normed)
    last, norm = chain[-1], norm_reading(chain[-1].sum, readers)
    # A norm after the last state belongs to the connection where the connection before it has one too (post-norm), and
    # has a norm before its branch as well if the last does; where not, it is the stream's final norm.
    before = chain[-2:-1]
    if (
        norm is not None
        and normed_after.issuperset(before)
        and norm_before(last, readers) <= any(norm_before(c, readers) for c in before)
    ):
        normed_after.add(last)
        norm = None
    residuals = [_residual(i, c, c in normed_after, readers) for i, c in enumerate(chain)]
    read_out = _read_out(norm or last.sum, readers)
    return Stream(_origin(chain[0].fork), residuals, norm.module if norm else None, read_out)


def _residual(index: int, connection: Connection, normed_after: bool, readers: Readers) -> Residual:
    node = connection.sum
    inner = [behind((write,), connection.fork) for write in connection.writes]
    branches = tuple(_common_path([n.module for n in nodes if n.transforms]) for nodes in inner)
    return Residual(
        index,
        node.module,
        _common_path(list(branches)),
        connection.source,
        kind_of(connection),
        placement_of(connection, normed_after, readers),
        tuple(node.shape),
        connection,
        _count_parameters(set().union(*inner)),
        branches,
    )


def _count_parameters(branch: set[Node]) -> int:
    """The entries of every parameter that the branch reads, through whatever computation, each counted once."""
    return sum(node.shape.numel() for node in leaves([node for each in branch for node in each.inputs]))


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
        elif mixes_streams(node) and (state := state_of(node)) is not None:
            pending.append((state, normed))
        elif node.op in ops.CLAMP:
            pending.append((node.inputs[0], normed))
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
        if node.transforms and node.op not in ops.MIX and len(seen) > 1:
            return node.module
        new = [reader for reader in readers[node] if reader not in seen and reader.role == ACTIVATION]
        seen.update(new)
        pending += new
    return None


def _common_path(names: list[str]) -> str:
    """The longest module path that all `names` share."""
    common = []
    for parts in zip(*(name.split(".") for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)
