"""Which block of a parameter a weight was cut from: experts and fused projections share one parameter."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from residuum.stream import ops
from residuum.stream.node import WEIGHT, Node
from residuum.stream.weights import upstream

# Of what is a view: what it is a view of, and which block of that.
Cuts = Mapping[Node, tuple[Node, str]]


def block_in(value: Tensor, whole: Tensor) -> str | None:
    """The block of `whole` that a view of it shows, as Python would index it: '[3]', '[:, 64:96]', '' for all of it.

    None for what is no block, such as every third row, and where `whole` is not laid out row by row.
    """
    if not whole.is_contiguous() or not value.numel():
        return None
    first = int(value.storage_offset()) - int(whole.storage_offset())
    last = first + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    spans: list[range] = []
    for size in reversed(whole.shape):
        first, start = divmod(first, size)
        last, end = divmod(last, size)
        spans.insert(0, range(start, end + 1))
    if math.prod(map(len, spans)) != value.numel():
        return None
    texts = [_index(span, size) for span, size in zip(spans, whole.shape, strict=True)]
    while texts and texts[-1] == ":":
        texts.pop()
    return f"[{', '.join(texts)}]" if texts else ""


def block_of(weight: Node, cuts: Cuts) -> str | None:
    """The block of its parameter that a weight was computed from; None where that cannot be told."""
    block = ""
    while weight.inputs:
        whole = [each for each in weight.inputs if each.role == WEIGHT and each.shape.numel() == weight.shape.numel()]
        if weight in cuts:
            weight, cut = cuts[weight]
            block = cut + block
        elif weight.op in ops.VIEW:
            weight = weight.inputs[0]
        elif weight.op not in ops.PART and whole:
            weight = whole[0]
        else:  # made of several, or picked by numbers that are not known here
            cut_up = any(each.op in ops.PART for each in upstream([weight]))
            return None if cut_up else block
    return block


def part_of(whole: Tensor, block: str) -> Tensor:
    """The block of a tensor, as `block_of` names it."""
    for index in re.findall(r"\[(.*?)\]", block):
        parts = [part.strip().partition(":") for part in index.split(",")]
        whole = whole[tuple(slice(_number(a), _number(b)) if colon else int(a) for a, colon, b in parts)]
    return whole


def _number(text: str) -> int | None:
    return int(text) if text else None


def _index(span: range, size: int) -> str:
    if len(span) == size:
        return ":"
    return str(span.start) if len(span) == 1 else f"{span.start}:{span.stop}"
