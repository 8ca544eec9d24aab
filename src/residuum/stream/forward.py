"""What one connection does to the values: how large skip, write and state are, and what shape the state has."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from residuum.stream.capture import Watch
from residuum.stream.connection import branch_of
from residuum.stream.node import Connection, Node
from residuum.stream.split import norm, share
from residuum.stream.spread import spread

# The most positions of a state that are looked at for its rank: enough to see a collapse, next to nothing to compute.
SAMPLE = 32

# Functions whose result has its channels before so many spatial dimensions.
CONVOLUTION = {f"conv{transposed}{n}d": n for n in (1, 2, 3) for transposed in ("", "_transpose")}

# Functions whose result has the dimensions in another order.
SWAP = frozenset({"transpose", "transpose_", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "mT", "T", "t"})


@dataclass(frozen=True)
class Forward:
    """What a connection did to the values.

    Root mean square of the skip, of the write, and of the state that their sum makes. The state is read as positions,
    each a vector of features: the features are the last dimension, or, where a convolution of n dimensions in the
    branch reads or makes the state, the channels, n dimensions before it.

    `influence`: 1 − the mean over positions of the cosine of skip and state (ShortGPT's block influence, Men et al.
    2024, arXiv 2403.03853), from 0 (no direction changed) to 2.
    `effective_rank`: exp of the entropy of the state's singular values, taken as shares of their sum (Roy & Vetterli
    2007), from 1 (all positions alike but for scale) to its ceiling, the smaller of `sampled` and the width. Positions
    are first scaled to length 1, so that a single long one does not hide what the others do.
    Both look at `sampled` positions: all, or 32 of them spread over all examples. In both a complex feature counts as
    two real ones.
    `outlier`: the largest channel's root mean square, over all positions, over the median channel's; infinite if half
    the channels are zero.
    A position that is zero before and after has not changed its direction; a state of zeros has rank 1 and outlier 1.
    """

    skip_rms: float
    write_rms: float
    state_rms: float
    influence: float
    effective_rank: float
    outlier: float
    sampled: int

    @property
    def write_share(self) -> float:
        """write / (skip + write), from 0 (the branch writes nothing) to 1 (it writes all)."""
        return share(self.write_rms, self.skip_rms)


class Kept(NamedTuple):
    """What is kept of one connection until the run is over: numbers and one small matrix, none read before the end."""

    skip_rms: Tensor
    write_rms: Tensor
    influence: Tensor
    channels: Tensor
    gram: Tensor


def watch_into(kept: dict[Node, Kept]) -> Watch:
    """A capture's watch that measures each connection as it is made; `forward_of` reads what it keeps."""

    def watch(skip: Tensor, write: Tensor) -> Callable[[Tensor, Node], None]:
        before = _rms(skip), _rms(write)
        old = skip.detach().clone()  # the sum may be made in place

        def measured(state: Tensor, node: Node) -> None:
            kept[node] = Kept(*before, *_shape(old, state.detach(), features(node.connection)))

        return measured

    return watch


def forward_of(kept: Kept) -> Forward:
    """Read the numbers off: the first time that the device is waited for."""
    channels = kept.channels.double().cpu()
    middle = channels.median()
    # √ of the Gram matrix's eigenvalues are the singular values of the sample itself.
    rank = math.nan
    if torch.isfinite(kept.gram).all():
        values = torch.linalg.eigvalsh(kept.gram.double().cpu()).clamp(min=0).sqrt()
        rank = float(torch.special.entr(values / values.sum()).sum().exp()) if values.any() else 1.0
    return Forward(
        float(kept.skip_rms),
        float(kept.write_rms),
        float(channels.square().mean().sqrt()),
        float(kept.influence),
        rank,
        float(channels.max() / middle) if channels.any() else 1.0,
        len(kept.gram),
    )


def features(connection: Connection | None) -> int:
    """The dimension of a state that holds its features, counted from the end."""
    if connection is not None and len(connection.sum.shape) > 2:
        for node in branch_of(connection):
            shapes = (node.shape, *(parent.shape for parent in node.activations))
            if node.op not in CONVOLUTION or not node.transforms or connection.sum.shape not in shapes:
                continue
            # Where all these dimensions are as long, only how often they were swapped tells positions from channels.
            several = len(set(connection.sum.shape[-1 - CONVOLUTION[node.op] :])) > 1
            if several or _swaps(node, connection.fork) % 2 == 0:
                return -1 - CONVOLUTION[node.op]
    return -1


def _swaps(node: Node, fork: Node) -> int:
    """How many calls between the fork and `node` put the dimensions in another order."""
    count = 0
    while node.index > fork.index and node.activations:
        count += node.op in SWAP
        node = node.activations[0]
    return count


def _shape(old: Tensor, state: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Influence, root mean square of each channel, and the Gram matrix of a sample of positions."""
    old, state = old.movedim(dim, -1), state.movedim(dim, -1)
    wide = torch.promote_types(state.dtype, torch.float32)
    if state.ndim == 1:  # one vector is one position
        old, state = old[None], state[None]
    positions = state.shape[:-1]
    count = max(positions.numel(), 1)
    channels = torch.linalg.vector_norm(state, dim=tuple(range(len(positions))), dtype=wide) / count**0.5
    at = torch.unravel_index(spread(count, SAMPLE, state.device), positions)
    rows, before = _real(state[at].to(wide)), _real(old[at].to(wide))
    cosines = F.cosine_similarity(before, rows, dim=-1)
    influence = 1 - torch.where((before == 0).all(-1) & (rows == 0).all(-1), 1, cosines).mean()
    rows = F.normalize(rows, dim=-1)
    return influence, channels, rows @ rows.mT


def _real(value: Tensor) -> Tensor:
    return torch.view_as_real(value).flatten(-2) if value.is_complex() else value


def _rms(value: Tensor) -> Tensor:
    return norm(value) / max(value.numel(), 1) ** 0.5
