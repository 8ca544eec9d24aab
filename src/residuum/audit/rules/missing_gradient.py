"""RS203: parameters that the loss does not reach."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule
from residuum.audit.rules._blocks import blocks_around, list_of
from residuum.audit.rules._names import some
from residuum.audit.rules._rounded import stopped
from residuum.audit.rules._start import dropped, only_starts
from residuum.stream import Flow


class MissingGradient(Rule):
    """A parameter that asks for a gradient gets none, or exactly zero: it will not train. Exact, so no threshold.

    A zero is no fault where it lies behind a matrix that starts at zero, in a branch that writes exactly nothing or in
    an adapter, or where it is multiplied by a parameter that starts so (a scale before a map of zeros): it trains from
    the second step on. What starts at zero gets a gradient itself at once; where no parameter of the branch or adapter
    does, all of it is stuck, unless stochastic depth dropped the branch in this run. Nor is it one where a member of a
    list was left out of this run, as experts without tokens and dropped layers are, while one of its siblings (four or
    more in the list) got a gradient. What a rounding stops is RS207's.
    """

    code = "RS203"
    severity = "warning"
    title = "parameter without gradient"
    mend = "use them in what the loss is computed from, or freeze them (requires_grad_(False)) to say so"

    def check(self, seen: Evidence) -> Iterator[Finding]:
        parameters, starting = seen.parameters, _behind_zero(seen.flow)
        rounded = stopped(seen.flow, parameters)
        names = [
            name
            for name in seen.flow.without_gradient
            if name not in rounded and (parameters[name].verdict == "no gradient" or name not in starting)
        ]
        idle = _left_out(seen.flow)
        left_out = [name for name in names if not idle.isdisjoint(blocks_around(name))]
        reached = [name for name in names if name not in left_out]
        if reached:
            said = f"{_get(reached)} no gradient from {seen.flow.loss_name}: {some(reached)}"
            yield self.finding(said, names=reached)
        if left_out:
            said = f"{_get(left_out)} no gradient, for their modules read nothing while siblings did: {some(left_out)}"
            mend = "nothing to mend if they run for other inputs or by chance"
            yield self.finding(said, severity="info", mend=mend, names=left_out)


def _get(names: list[str]) -> str:
    return f"{len(names)} parameters get" if len(names) > 1 else "1 parameter gets"


def _left_out(flow: Flow) -> set[str]:
    """The members of lists of four or more that read no entry of any activation, where another got a gradient."""
    read = [node for node in flow.graph.nodes if node.role == "activation" and node.shape.numel()]
    ran = {block for node in read for block in blocks_around(node.module)}
    members: dict[str, set[str]] = defaultdict(set)
    trained: set[str] = set()
    for name, parameter in flow.parameters.items():
        for block in blocks_around(name.rpartition(".")[0]):
            members[list_of(block)].add(block)
            if parameter.gradient_rms:
                trained.add(block)
    large = [blocks for blocks in members.values() if len(blocks) >= 4 and blocks & trained]
    return set().union(*large) - ran


def _behind_zero(flow: Flow) -> frozenset[str]:
    quiet = [m for m in flow.all_measured if m.forward.write_rms == 0]
    by_chance = {name for m in quiet if dropped(m.residual) for name in m.parameters}
    silent = [m.parameters for m in quiet]
    silent += [adapter.parameters for adapter in flow.adapters if adapter.product_norm == 0]
    starting = {name for names in silent if only_starts(names, flow) for name in names}
    return flow.waiting | by_chance | starting


RULE = MissingGradient()
