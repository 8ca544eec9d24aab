"""Attention residuals: each sub-layer reads a mean of all earlier writes, weighted by what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved, accumulate
from residuum.model.norm import make_norm
from residuum.model.precision import at_least_float32, without_autocast
from residuum.model.residual.base import Branch, Receiver, Residual, Stream, joined, register

Query = Float[Tensor, "d_model"]
Rows = Float[Tensor, "batch pos 1"]
Depths = Float[Tensor, "depth batch pos 1"]
State = tuple[Tensor, ...]
"""The embedding v_0 and all writes v_1, v_2, …; then as many r_i = 1/√(mean(v_i²) + ε), each computed once."""


@register("attention-residuals")
class AttentionResiduals(Residual):
    """v_l = f(norm(h_l)), h_l = Σ_i α_i v_i over all i < l, α = softmax_i(wᵀ rms_norm(v_i)); at the end one more h.

    v_0 is the embedding. The backward is `fused_backward`'s. At the start w = 0, and h is the plain mean; what is read
    through a norm is then pre-norm's, as n(h) does not see that a sum was divided. The first sub-layer has nothing to
    weigh and no w. Of `parts`, which are v_0's: it is handed on as it is, and read by the sub-layer.

    Source: Chen et al. 2026, https://arxiv.org/abs/2603.15031 (each sub-layer by itself, not in blocks).
    """

    use = "To let each sub-layer choose what it reads, where memory for every write is at hand."

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.norm = make_norm(config)
        self.eps = config.norm_eps
        if place > 0:
            self.query = nn.Parameter(torch.zeros(config.d_model))
        if place == self.n_places - 1:
            self.end_query = nn.Parameter(torch.zeros(config.d_model))

    def begin(self, x: Stream) -> State:
        return x, self._inverse_rms(x)

    def begin_backward(self, dstate: tuple[Stream]) -> Stream:
        return dstate[0]

    def forward(self, state: State, branch: Branch, *args: Any) -> State:
        vs, rs = _halves(state)
        h = vs[0] if self.place == 0 else Fused.apply(self.query, *vs, *rs)
        write = branch(self.norm(h), *args)
        return *vs, write, *rs, self._inverse_rms(write)

    def explicit_forward(self, state: State, branch: Branch, *args: Any) -> tuple[State, Saved]:
        vs, rs = _halves(state)
        h, scores, pattern = (vs[0], None, None) if self.place == 0 else fused(self.query, vs, rs)
        normed, of_norm = self.norm.explicit_forward(h)
        write, (_, *of_branch) = branch.explicit_forward(normed, *args)
        saved = (branch, (vs, rs, scores, pattern), of_norm, of_branch)
        return (*vs, write, *rs, self._inverse_rms(write)), saved

    def explicit_backward(self, dstate: Any, saved: Saved, parts: Receiver | None = None) -> Any:
        """The gradients of the v_i, which `explicit_end_backward` made, grow in place."""
        branch, of_sum, of_norm, of_branch = saved
        *dvs, dwrite = dstate
        kind = of_sum[0][0].dtype  # sums are in float32, though the weights be in less
        dnormed = branch.explicit_backward(dwrite.to(kind), (self.norm.explicit_again(of_norm), *of_branch))
        dh = self.norm.explicit_backward(dnormed, of_norm)
        if self.place == 0:
            return (joined(dvs[0], dh, parts).to(kind),)
        read = _Reads(dh, self.query, *of_sum)
        accumulate(self.query, read.dquery)
        first = joined(dvs[0], read.gradient(0), parts)
        return first, *(read.gradient(i, dv) for i, dv in enumerate(dvs[1:], 1))

    def end(self, state: State) -> Stream:
        return Fused.apply(self.end_query, *state)

    def explicit_end(self, state: State) -> tuple[Stream, Saved]:
        vs, rs = _halves(state)
        h, scores, pattern = fused(self.end_query, vs, rs)
        return h, (vs, rs, scores, pattern)

    def explicit_end_backward(self, dx: Stream, saved: Saved) -> Any:
        read = _Reads(dx, self.end_query, *saved)
        accumulate(self.end_query, read.dquery)
        return tuple(read.gradient(i) for i in range(len(saved[0])))

    @torch.no_grad()
    def _inverse_rms(self, v: Stream) -> Rows:
        """What v's gradient owes to it, `fused_backward` knows."""
        wide = torch.promote_types(v.dtype, torch.float32)
        size = torch.linalg.vector_norm(v, dim=-1, keepdim=True, dtype=wide)
        return size.square_().div_(v.shape[-1]).add_(self.eps).rsqrt_()


def naive(query: Query, vs: Sequence[Stream], eps: float) -> Stream:
    """h = Σ_i α_i v_i, α = softmax_i(wᵀ rms_norm(v_i)), with all v_i once more in one tensor."""
    stacked = torch.stack(tuple(vs))
    pattern = (F.rms_norm(stacked, query.shape, eps=eps) @ query).softmax(0)
    return (pattern[..., None] * stacked).sum(0)


def fused(query: Query, vs: Sequence[Stream], rs: Sequence[Rows]) -> tuple[Stream, Depths, Depths]:
    """The same h, scores s_i = r_i wᵀ v_i and pattern α: each v_i is read twice, and none is copied."""
    with without_autocast(query):  # scores are sums over d_model
        wide = at_least_float32(query)
        scores = torch.stack([r * (at_least_float32(v) @ wide)[..., None] for v, r in zip(vs, rs, strict=True)])
    pattern = scores.softmax(0)
    h = vs[0] * pattern[0]
    for v, share in zip(vs[1:], pattern[1:], strict=True):
        h.addcmul_(v, share)
    return h.to(vs[0].dtype), scores, pattern


@torch.no_grad()
def fused_backward(
    dh: Stream, query: Query, vs: Sequence[Stream], rs: Sequence[Rows], scores: Depths, pattern: Depths
) -> tuple[Query, Depths, Depths]:
    """dw and two factors a row, b and c, of dv_i = α_i dh + b_i w + c_i v_i.

    v_i is summed, scored, and through r_i scales its own score: dα_i = ⟨dh, v_i⟩, ds_i = α_i (dα_i − Σ_j α_j dα_j),
    b_i = ds_i r_i, dw = Σ b_i v_i, and, since dr_i = −r_i³ ⟨v_i, dv_i⟩ / d_model, c_i = −ds_i s_i r_i² / d_model.
    """
    wide = at_least_float32(dh)
    products = torch.empty_like(wide)  # one for all: touching new memory would cost more than the products
    dpattern = torch.stack([torch.mul(wide, v, out=products).sum(-1, keepdim=True) for v in vs])
    dscores = pattern * (dpattern - (pattern * dpattern).sum(0))
    r = torch.stack(tuple(rs))
    b = dscores * r
    c = b * r * scores / -query.shape[0]
    torch.mul(vs[0], b[0], out=products)
    for v, factor in zip(vs[1:], b[1:], strict=True):
        products.addcmul_(v, factor)
    return products.flatten(0, -2).sum(0), b, c


class _Reads:
    """One sum's part in the gradient of everything that it read."""

    def __init__(
        self, dh: Stream, query: Tensor, vs: Sequence[Stream], rs: Sequence[Rows], scores: Depths, pattern: Depths
    ) -> None:
        self.dquery, self.b, self.c = fused_backward(dh, query, vs, rs, scores, pattern)
        self.dh, self.query, self.vs, self.pattern = dh, query.detach(), vs, pattern

    def gradient(self, i: int, dv: Stream | None = None) -> Stream:
        """α_i dh + b_i w + c_i v_i, added to dv where there is one."""
        dv = self.dh * self.pattern[i] if dv is None else dv.addcmul_(self.dh, self.pattern[i])
        return dv.addcmul_(self.b[i], self.query).addcmul_(self.vs[i], self.c[i])


class Fused(torch.autograd.Function):
    """`fused` under autograd, whose own record would hold and read each v_i several times."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, *state: Tensor) -> Tensor:
        vs, rs = _halves(state)
        h, scores, pattern = fused(query, vs, rs)
        ctx.save_for_backward(query, scores, pattern, *state)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        query, scores, pattern, *state = ctx.saved_tensors
        vs, rs = _halves(state)
        read = _Reads(dh, query, vs, rs, scores, pattern)
        return read.dquery, *map(read.gradient, range(len(vs))), *[None] * len(rs)


def _halves(state: Sequence[Tensor]) -> tuple[tuple[Stream, ...], tuple[Rows, ...]]:
    half = len(state) // 2
    return tuple(state[:half]), tuple(state[half:])
