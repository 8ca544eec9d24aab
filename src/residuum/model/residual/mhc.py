"""Manifold-constrained hyper-connections: streams are averaged with each other, and so neither grow nor vanish."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved
from residuum.model.precision import at_least_float32
from residuum.model.product import product
from residuum.model.residual.base import register
from residuum.model.residual.mixing import compiled
from residuum.model.residual.streams import Rows, Streams, Table, TableGradients

SCALE = 0.01
ITERATIONS = 20
APART = -8.0
OWN = 3 / 4

Square = Float[Tensor, "n n rows"]
Sides = Float[Tensor, "times n rows"]


@register("mhc")
class MHC(Streams):
    """X_j ← Σ_i A_ij X_i + b_j f(norm(Σ_i a_i X_i)), A = Sinkhorn(l_A) doubly stochastic, a = σ(l_a), b = 2 σ(l_b).

    Each l is a number plus s w · X̂, where X̂ = rms-norm of all n streams together. Columns of A sum to 1, and so do
    those of a product of many such A: no depth makes the streams grow. Rows, which gradients go back by, sum to 1 only
    nearly, and a product's less so. Sinkhorn: exp(l_A), then 20 times each row and each column divided by its sum. The
    gradient splits three ways: dX_i = Σ_j A_ij dY_j, and a_i dh, and what X did by moving the coefficients. The paper
    says of the start that s is 0.01. The rest is ours: w = 0; l_A is 0 and, off the diagonal, −8, so that A is the
    identity to 0.001; b = 1; a branch reads 3/4 of stream l mod n and the rest of the others alike, and so x as it is.
    Source: Xie et al. 2025, https://arxiv.org/abs/2512.24880.
    """

    use = "As hyper-connections, for deep models: a product of its mixings hardly grows, where theirs do."

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        others = (1 - OWN) / max(self.n - 1, 1)
        read = torch.full((self.n,), math.log(others / (1 - others)))
        read[place % self.n] = math.log(OWN / (1 - OWN))
        self.read = nn.Parameter(read)
        self.mix = nn.Parameter(APART * (1 - torch.eye(self.n)))
        self.write = nn.Parameter(torch.zeros(self.n))
        self.dynamic = nn.Parameter(torch.zeros(self.n * (self.n + 2), self.n * config.d_model))
        self.scale = nn.Parameter(torch.full((3,), SCALE))
        self.eps = config.norm_eps

    def table(self, rows: Rows) -> Table:
        wide = at_least_float32(rows).flatten(1)
        normed = wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        logits = self.fixed + self._scales() * (normed @ self.dynamic.to(wide.dtype).t()).view(-1, self.n, self.n + 2)
        mix = (logits[..., 1:-1] - logits[..., 1:-1].amax(-1, keepdim=True)).exp()
        for _ in range(ITERATIONS):
            mix = mix / mix.sum(-1, keepdim=True)
            mix = mix / mix.sum(-2, keepdim=True)
        return torch.cat((logits[..., :1].sigmoid(), mix, 2 * logits[..., -1:].sigmoid()), -1)

    def explicit_table(self, rows: Rows) -> tuple[Table, Saved]:
        """Keeps, for each row, the table, w · x̂, 1/√(mean(x²) + ε), and Sinkhorn's steps, a tenth of the streams."""
        wide = at_least_float32(rows).flatten(1)
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(wide.shape[-1])
        rstd = square.add_(self.eps).rsqrt_()
        along = product(wide, at_least_float32(self.dynamic).t()).mul_(rstd).view(-1, self.n, self.n + 2)
        logits = torch.addcmul(self.fixed, self._scales(), along)
        table, steps = balance(logits)
        return table, (table, along, rstd, steps)

    def explicit_table_backward(self, dtable: Table, rows: Rows, saved: Saved) -> TableGradients:
        """With u = w · x̂: dx = (Σ_c du_c (w_c − x̂ u_c / (n d))) / rms.

        As in an rms-norm's backward x moves u directly and by moving its own size, and the sum over u's many columns is
        the small one: u = w · x̂ is there already.
        """
        table, along, rstd, steps = saved
        wide, dynamic = at_least_float32(rows).flatten(1), at_least_float32(self.dynamic)
        dlogits = balance_backward(dtable, table, steps)
        dscales = (dlogits * along).sum((0, 1))
        du = dlogits * self._scales()
        size = (du * along).sum((1, 2)).unsqueeze(-1).mul_(rstd.square()).div_(-wide.shape[-1])
        dproducts = (du * rstd.unsqueeze(-1)).flatten(1)
        fixed = dlogits.sum(0)
        of_weights = (
            fixed[:, 0].to(self.read.dtype).clone(),
            fixed[:, 1:-1].to(self.mix.dtype).clone(),
            fixed[:, -1].to(self.write.dtype).clone(),
            product(dproducts.t(), wide).to(self.dynamic.dtype),
            torch.stack((dscales[0], dscales[1:-1].sum(), dscales[-1])).to(self.scale.dtype),
        )
        return TableGradients(size.expand(-1, self.n).contiguous(), dproducts, dynamic, of_weights)

    def _scales(self) -> Tensor:
        """For each column of the table its s."""
        read, mix, write = at_least_float32(self.scale).split(1)
        return torch.cat((read, mix.expand(self.n), write))


class Steps(NamedTuple):
    """K = exp(logits), and every u and v, rows last. Shapes: [n, n, rows], [times, n, rows], [times + 1, n, rows]."""

    k: Square
    us: Sides
    vs: Sides


def balance(logits: Table) -> tuple[Table, Steps]:
    """a = σ(l_a), b = 2 σ(l_b) and A = Sinkhorn(l_A) of a table of logits."""
    table, (count, n, _) = torch.empty_like(logits), logits.shape
    steps = Steps(*(logits.new_empty(first, n, count) for first in (n, ITERATIONS, ITERATIONS + 1)))
    if not compiled("balance", logits, table, *steps):
        mix, steps = sinkhorn(_of_rows(logits[..., 1:-1]))
        table = logits.sigmoid()
        table[..., 1:-1] = mix.permute(2, 0, 1)
        table[..., -1] *= 2
    return table, steps


def balance_backward(dtable: Table, table: Table, steps: Steps) -> Table:
    """dl_a = a (1 − a) da, dl_b = b (1 − b/2) db, and dl_A through every iteration."""
    dlogits = torch.empty_like(dtable)
    if not compiled("balance_back", dtable, table, *steps, dlogits):
        read, write = table[..., 0], table[..., -1]
        dlogits[..., 0] = dtable[..., 0] * read * (1 - read)
        mix, dmix = _of_rows(table[..., 1:-1]), _of_rows(dtable[..., 1:-1])
        dlogits[..., 1:-1] = sinkhorn_backward(dmix, mix, steps).permute(2, 0, 1)
        dlogits[..., -1] = dtable[..., -1] * write * (1 - write / 2)
    return dlogits


def sinkhorn(logits: Square) -> tuple[Square, Steps]:
    """u_i K_ij v_j with K = exp(logits): ITERATIONS times u = 1 / K v, then v = 1 / Kᵀ u, from v = 1.

    That divides each row by its sum and then each column, and the matrix itself is never written: only u and v change,
    and with the rows last in memory each step is a few long sums. No exp overflows and no row or column of K vanishes,
    whatever the logits: the largest of each is 1, and u and v take up the rest.
    Source: Sinkhorn, Knopp 1967, https://doi.org/10.2140/pjm.1967.21.343.
    """
    logits = logits - logits.amax(1, keepdim=True)
    largest = logits.amax(0)
    k = (logits - largest).exp_()
    us, vs = [], [largest.exp()]
    for _ in range(ITERATIONS):
        us.append((k * vs[-1]).sum(1).reciprocal_())
        vs.append((k * us[-1].unsqueeze(1)).sum(0).reciprocal_())
    return k * us[-1].unsqueeze(1) * vs[-1], Steps(k, torch.stack(us), torch.stack(vs))


def sinkhorn_backward(dmix: Square, mix: Square, steps: Steps) -> Square:
    """The way back through every iteration.

    With α = log u, β = log v: dlogits = dmix ⊙ mix directly, and as much reaches the last α_i and β_j as their row and
    column hold of it. α_i = −log Σ_j K_ij v_j hands −dα_i on to each K_ij v_j by its share in the sum, u_i K_ij v_j;
    and v does the same with u. `through` collects these shares without their K, which all have in common.
    """
    k, us, vs = steps
    direct = dmix * mix
    dalpha, minus_dbeta = direct.sum(1), -direct.sum(0)
    through, nothing = torch.zeros_like(k), torch.zeros_like(dalpha)
    for t in reversed(range(ITERATIONS)):
        share = vs[t + 1] * minus_dbeta
        through.addcmul_(us[t].unsqueeze(1), share)
        dalpha = torch.addcmul(dalpha, us[t], (k * share).sum(1))
        share = (us[t] * dalpha).unsqueeze(1)
        through.addcmul_(share, vs[t], value=-1)
        dalpha, minus_dbeta = nothing, vs[t] * (k * share).sum(0)
    return direct.addcmul_(k, through)


def _of_rows(matrices: Float[Tensor, "rows n n"]) -> Square:
    return matrices.permute(1, 2, 0).contiguous()
