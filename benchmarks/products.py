"""The explicit pairs' matrix product (oneDNN's) against PyTorch's own (MKL's) in float32 on the CPU.

For each of a linear map's three products: forward x Wᵀ, back to the input dy W, to the weight dyᵀ x. There is no bound:
on a processor that MKL was made for, expect 1; `model/product.py` says what the ratio is used for.
"""

from __future__ import annotations

import torch
from torch import Tensor

import harness
from residuum.model.product import HAS_ONEDNN, product

SHAPES = ((768, 128, 512), (1024, 384, 1536), (1024, 768, 3072))
ROUNDS, REPEAT = 20, 5


def main() -> None:
    if not HAS_ONEDNN:
        print("skipped, because this PyTorch has no oneDNN")
        return
    torch.manual_seed(0)
    figures = {}
    for rows, d_in, d_out in SHAPES:
        x, dy, w = torch.randn(rows, d_in), torch.randn(rows, d_out), torch.randn(d_out, d_in)
        for name, a, b in (("forward", x, w.t()), ("to the input", dy, w), ("to the weight", dy.t(), x)):
            figures[f"{name}, {rows} × {d_in} × {d_out}"] = compared(a, b)
    harness.save("products", figures)


@torch.no_grad()
def compared(a: Tensor, b: Tensor) -> dict[str, float]:
    def ours() -> None:
        for _ in range(REPEAT):
            product(a, b)

    def theirs() -> None:
        for _ in range(REPEAT):
            a @ b

    return harness.ratio(ours, theirs, ROUNDS)


if __name__ == "__main__":
    main()
