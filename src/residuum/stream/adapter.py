"""Low-rank adapters beside a base layer, recognised from the operations: h W + s · (h A) B with A and B thin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from residuum.stream import ops
from residuum.stream.carry import carried
from residuum.stream.node import Node
from residuum.stream.split import norm
from residuum.stream.weights import parameters_of


@dataclass(frozen=True)
class Adapter:
    """A pair of thin matrices A and B added to a base matrix W (LoRA, Hu et al. 2021, arXiv 2106.09685).

    `product_norm` is the Frobenius norm ‖BA‖ without the scale that may stand before it, `base_norm` ‖W‖.
    """

    module: str
    base: str
    parameters: tuple[str, str]
    product_norm: float
    base_norm: float


def adapters_in(nodes: list[Node], names: dict[Node, str], parameters: Mapping[str, Tensor]) -> Iterator[Adapter]:
    """Every sum of a matrix product and a product with two thin matrices whose rank is below both widths."""
    for node in nodes:
        if node.op not in ops.ADD or len(node.activations) != 2:
            continue
        for base, added in (node.activations, node.activations[::-1]):
            found = [_matrix(each, names, parameters) for each in (base, *_pair(added))]
            weights = [each for each in found if each is not None]
            if len(weights) < 3:
                continue
            (name, w), (b_name, b), (a_name, a) = weights
            ranks = set(a.shape) & set(b.shape)
            if a_name != b_name and ranks and min(ranks) < min(w.shape):
                yield Adapter(node.module, name, (a_name, b_name), _product_norm(a, b, min(ranks)), float(norm(w)))
                break


def _pair(node: Node) -> list[Node]:
    """The second and the first matrix product behind `node`, with no more than scales and dropout between."""
    found: list[Node] = []
    while len(found) < 2 and node.activations:
        if node.transforms:
            found.append(node)
            node = node.activations[0]
        elif carried(node):
            node = carried(node)[0]
        else:
            break
    return found


def _matrix(node: Node, names: dict[Node, str], parameters: Mapping[str, Tensor]) -> tuple[str, Tensor] | None:
    """The one matrix that `node` multiplies an activation with, as it stands in the model."""
    if not node.transforms:
        return None
    behind = parameters_of({node}, names)
    matrices = [name for name in behind if parameters[name].ndim == 2 and parameters[name].is_floating_point()]
    return (matrices[0], parameters[matrices[0]].detach()) if len(matrices) == 1 else None


def _product_norm(a: Tensor, b: Tensor, rank: int) -> float:
    """‖BA‖ = √ trace((AAᵀ)(BᵀB)), from two matrices of the size of the rank."""
    a, b = (m.double() if m.device.type != "mps" else m.float() for m in (a, b))
    a = a if a.shape[0] == rank else a.mT
    b = b if b.shape[1] == rank else b.mT
    return float(torch.trace((a @ a.mT) @ (b.mT @ b)).clamp(min=0).sqrt())
