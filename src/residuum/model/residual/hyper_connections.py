"""Hyper-connections: several streams, and learned coefficients for what is read, mixed and written."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved
from residuum.model.precision import at_least_float32
from residuum.model.product import product
from residuum.model.residual.base import register
from residuum.model.residual.streams import Rows, Streams, Table, TableGradients

SCALE = 0.01


@register("hyper-connections")
class Hyper(Streams):
    """X_j ← Σ_i A_ij X_i + b_j f(norm(Σ_i a_i X_i)), each coefficient a number plus s tanh(w · X̂_i), X̂ = norm(X).

    The gradient splits three ways: dX_i = Σ_j A_ij dY_j, and a_i dh, and what X did by moving the coefficients. At the
    start A is the identity, b = 1, the branch of connection l reads stream l mod n, every w is 0 and both s (one of a
    and A, one of b) are 0.01: n equal streams, each of them Pre-LN's. The norm of X̂ is a layer norm without gain, which
    would be w's. The dynamic variant of the paper. Source: Zhu et al. 2024, https://arxiv.org/abs/2409.19606.
    """

    use = (
        "To let the model learn which streams each branch reads and writes: lower loss at equal steps, for n times the "
        "stream's memory."
    )

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.read = nn.Parameter(F.one_hot(torch.tensor(place % self.n), self.n).float())
        self.mix = nn.Parameter(torch.eye(self.n))
        self.write = nn.Parameter(torch.ones(self.n))
        self.dynamic = nn.Parameter(torch.zeros(self.n + 2, config.d_model))
        self.scale = nn.Parameter(torch.full((2,), SCALE))
        self.eps = config.norm_eps

    def table(self, rows: Rows) -> Table:
        wide = at_least_float32(rows)
        normed = F.layer_norm(wide, wide.shape[-1:], eps=self.eps)
        return self.fixed + self._scales() * torch.tanh(F.linear(normed, self.dynamic.to(wide.dtype)))

    def explicit_table(self, rows: Rows) -> tuple[Table, Saved]:
        """One product for all: x̂ · w = (x · (w − mean(w))) / √var, and the mean of x is its product with 1/d.

        Keeps, for each stream of a row, w · x̂, tanh of it, the mean and 1/√(var + ε).
        """
        wide, matrix = at_least_float32(rows), self._matrix()
        products = product(wide, matrix.t())
        mean = products[..., -1:]
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(wide.shape[-1])
        rstd = square.addcmul_(mean, mean, value=-1).clamp_(min=0).add_(self.eps).rsqrt_()
        along = products[..., :-1] * rstd
        bent = along.tanh()
        return torch.addcmul(self.fixed, self._scales(), bent), (matrix, along, bent, mean, rstd)

    def explicit_table_backward(self, dtable: Table, rows: Rows, saved: Saved) -> TableGradients:
        """With u = w · x̂: du = s (1 − tanh²) dt, and dx = (Σ_c du_c (w_c − mean(w_c)) − x̂ Σ_c du_c u_c / d) / √var.

        As in a layer norm's backward x moves u directly and by moving its own size, and the sum over u's many columns
        is the small one: u = w · x̂ is there already.
        """
        matrix, along, bent, mean, rstd = saved
        wide = at_least_float32(rows)
        d = wide.shape[-1]
        bending = dtable * bent
        dscales = bending.sum((0, 1))
        du = torch.addcmul(dtable, bending, bent, value=-1).mul_(self._scales())
        size = (du * along).sum(-1, keepdim=True).mul_(rstd.square()).div_(-d)
        dproducts = torch.cat((du * rstd, -d * mean * size), -1)
        dcentred = product(dproducts[..., :-1].flatten(0, 1).t(), wide.flatten(0, 1))
        fixed = dtable.sum(0)
        of_weights = (
            fixed[:, 0].to(self.read.dtype).clone(),
            fixed[:, 1:-1].to(self.mix.dtype).clone(),
            fixed[:, -1].to(self.write.dtype).clone(),
            (dcentred - dcentred.mean(-1, keepdim=True)).to(self.dynamic.dtype),
            torch.stack((dscales[:-1].sum(), dscales[-1])).to(self.scale.dtype),
        )
        return TableGradients(size.squeeze(-1), dproducts.flatten(0, 1), matrix, of_weights)

    def _scales(self) -> Tensor:
        """For each column of the table its s."""
        return at_least_float32(torch.cat((self.scale[:1].expand(self.n + 1), self.scale[1:])))

    def _matrix(self) -> Tensor:
        """w − mean(w) for each column, and below them 1/d. [n + 3, d_model]"""
        dynamic = at_least_float32(self.dynamic)
        average = torch.full_like(dynamic[:1], 1 / dynamic.shape[1])
        return torch.cat((dynamic - dynamic.mean(1, keepdim=True), average))
