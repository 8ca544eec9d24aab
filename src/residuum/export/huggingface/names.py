"""Our names of a model's numbers as others have them."""

from __future__ import annotations

import re

from torch import Tensor, nn


def renamed(name: str, modules: dict[str, str]) -> str:
    """`name` of a parameter with its module's name replaced by that of `modules`, where {} is the block's number."""
    module, _, kind = name.rpartition(".")
    block = re.match(r"blocks\.(\d+)\.", module)
    if block is None:
        theirs = modules[module]
    else:
        theirs = modules[f"blocks.{{}}.{module[block.end() :]}"].format(block[1])
    return f"{theirs}.{'weight' if kind == 'gain' else kind}"


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Each parameter once, as it is saved: a tied head is the embedding's, under the embedding's name."""
    return {name: parameter.detach().float().cpu() for name, parameter in model.named_parameters()}
