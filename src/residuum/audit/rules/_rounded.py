"""Weights that are rounded and get no gradient past it: what RS207 says and RS203 leaves to it."""

from __future__ import annotations

from collections.abc import Mapping

from residuum.stream import Flow, ParameterFlow


def stopped(flow: Flow, parameters: Mapping[str, ParameterFlow]) -> list[str]:
    """Those that ask for a gradient, in the order in which they are used."""
    names = [name for each in flow.rounded if not each.learns for name in each.parameters]
    return [name for name in dict.fromkeys(names) if name in parameters and parameters[name].asked]
