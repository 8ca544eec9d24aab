"""The scaled dot product of attention and its gradient: readable, and on PyTorch's fused kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from residuum.model.dropout import Dropout
from residuum.model.gradient import Saved

Queries = Float[Tensor, "batch heads queries d_head"]
Keys = Float[Tensor, "batch kv_heads keys d_head"]
Allowed = Bool[Tensor, "batch 1 queries keys"] | Bool[Tensor, "queries keys"]


def attend(
    q: Queries, k: Keys, v: Keys, causal: bool, allowed: Allowed | None, dropout: Dropout
) -> tuple[Queries, Saved]:
    """y = softmax(q kᵀ / √d_head) v, and what else `attend_backward` needs.

    `allowed`, where given, says all of what may be seen; else `causal` does. A pattern from which entries are dropped
    has to exist as a whole; the fused kernels never write it down.
    """
    if dropout.training and dropout.p > 0:
        return naive(q, k, v, causal, allowed, dropout)
    if q.device.type == "cpu":
        return fused(q, k, v, causal, allowed)
    return by_autograd(q, k, v, causal, allowed)


def attend_backward(dy: Queries, q: Queries, k: Keys, v: Keys, y: Queries, kept: Saved) -> tuple[Queries, Keys, Keys]:
    """dq, dk, dv."""
    backward, *rest = kept
    return backward(dy, q, k, v, y, *rest)


def naive(
    q: Queries, k: Keys, v: Keys, causal: bool, allowed: Allowed | None, dropout: Dropout
) -> tuple[Queries, Saved]:
    """P = softmax(q kᵀ / √d_head), y = dropout(P) v, with all of P [batch, heads, queries, keys] in memory."""
    if allowed is None and causal:
        allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    keys, values = _shared(k, q), _shared(v, q)
    scores = q @ keys.mT * q.shape[-1] ** -0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    pattern = scores.softmax(-1)
    seen, dropped = dropout.explicit_forward(pattern)
    return seen @ values, (naive_backward, pattern, dropped, dropout)


def naive_backward(
    dy: Queries,
    q: Queries,
    k: Keys,
    v: Keys,
    y: Queries,  # noqa: ARG001 - the other ways need it
    pattern: Tensor,
    dropped: Tensor | None,
    dropout: Dropout,
) -> tuple[Queries, Keys, Keys]:
    """dv = D(P)ᵀ dy, dP = D(dy vᵀ), dS = P ⊙ (dP − Σ P ⊙ dP), dq = dS k / √d_head, dk = dSᵀ q / √d_head.

    D is dropout with the mask of the forward. A row of softmax sums to one whatever its scores, so what all of a row's
    dP have in common is taken off. That sum over keys is Σ dy ⊙ y too, but rounded otherwise: one key alone would get a
    little where it should get nothing. Query heads that share a head of keys each give it
    a gradient, and it receives the sum.
    """
    scale = q.shape[-1] ** -0.5
    keys, values = _shared(k, q), _shared(v, q)
    dv = dropout.explicit_backward(pattern, dropped).mT @ dy
    dpattern = dropout.explicit_backward(dy @ values.mT, dropped)
    dscores = pattern * (dpattern - (pattern * dpattern).sum(-1, keepdim=True))
    dq, dk = dscores @ keys * scale, dscores.mT @ q * scale
    return dq, _summed(dk, k), _summed(dv, v)


def _shared(x: Keys, q: Queries) -> Float[Tensor, "batch heads keys d_head"]:
    """Each head of keys or values once for every query head that reads it."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _summed(dx: Float[Tensor, "batch heads keys d_head"], x: Keys) -> Keys:
    return dx.unflatten(1, (x.shape[1], -1)).sum(2)


def fused(q: Queries, k: Keys, v: Keys, causal: bool, allowed: Allowed | None) -> tuple[Queries, Saved]:
    """The same in blocks of queries and keys, keeping log Σ exp(scores) of each row in place of the pattern.

    Source: Dao et al. 2022, https://arxiv.org/abs/2205.14135; PyTorch's kernel for the CPU.
    """
    bias = None
    if allowed is not None:
        causal = False
        bias = torch.zeros(allowed.shape, dtype=q.dtype, device=q.device).masked_fill_(~allowed, float("-inf"))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    y, logsumexp = kernel(_dense(q), _dense(k), _dense(v), 0.0, causal, attn_mask=bias)
    return y, (fused_backward, logsumexp, causal, bias)


def fused_backward(
    dy: Queries, q: Queries, k: Keys, v: Keys, y: Queries, logsumexp: Tensor, causal: bool, bias: Tensor | None
) -> tuple[Queries, Keys, Keys]:
    """`naive_backward` with P computed again block by block."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    dq, dk, dv = kernel(_dense(dy), _dense(q), _dense(k), _dense(v), y, logsumexp, 0.0, causal, attn_mask=bias)
    return dq, dk, dv


def _dense(x: Tensor) -> Tensor:
    """The kernel takes it unasked that a head's entries lie side by side; two of them, rotated, may not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def by_autograd(q: Queries, k: Keys, v: Keys, causal: bool, allowed: Allowed | None) -> tuple[Queries, Saved]:
    """The same on a device whose kernels PyTorch chooses among: their backward is reached through its autograd."""
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        causal, gqa = causal and allowed is None, q.shape[1] != k.shape[1]
        y = F.scaled_dot_product_attention(
            inputs[0], inputs[1], inputs[2], attn_mask=allowed, is_causal=causal, enable_gqa=gqa
        )
    return y.detach(), (by_autograd_backward, y, inputs)


def by_autograd_backward(
    dy: Queries, q: Queries, k: Keys, v: Keys, y: Queries, attended: Tensor, inputs: list[Tensor]
) -> tuple[Queries, Keys, Keys]:
    """One kernel's backward, called by PyTorch."""
    del q, k, v, y  # PyTorch's record holds its own
    dq, dk, dv = torch.autograd.grad(attended, inputs, dy)
    return dq, dk, dv
