"""Several streams side by side: what hyper-connections are made of."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved, accumulate
from residuum.model.norm import make_norm
from residuum.model.precision import at_least_float32, without_autocast
from residuum.model.residual.base import Branch, Optim, Receiver, Residual, Stream, joined

if TYPE_CHECKING:
    from residuum.model.transformer import Transformer

STREAMS = 4
"""The number that both papers settle on."""

States = Float[Tensor, "batch pos n d_model"]
Rows = Float[Tensor, "rows n d_model"]
Table = Float[Tensor, "rows n n_and_2"]


class Coefficients(NamedTuple):
    """How much of each stream the branch reads, of stream i stream j is made of (`mix[i, j]`), and each is written."""

    read: Float[Tensor, "*rows n"]
    mix: Float[Tensor, "*rows n n"]
    write: Float[Tensor, "*rows n"]


class Streams(Residual):
    """X_j ← Σ_i A_ij X_i + b_j f(norm(Σ_i a_i X_i)), with coefficients a, A and b that a subclass makes of X.

    X begins as n copies of x and ends as their sum. The gradient splits three ways: at X, dX_i = Σ_j A_ij dY_j (the
    identity path) + a_i dh + what comes through the coefficients (the branch path). Shapes: X [batch, pos, n, d_model].

    A subclass says how a table of them, [rows, n, n + 2], is computed: column 0 is a, the last b, those between are A.
    It has a fixed part for each, `read` [n], `mix` [n, n] and `write` [n]; what X is multiplied by, `dynamic`; `scale`.
    """

    read: nn.Parameter
    mix: nn.Parameter
    write: nn.Parameter
    dynamic: nn.Parameter
    scale: nn.Parameter
    settings = ("residual_streams",)

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.n = STREAMS if config.residual_streams is None else config.residual_streams
        self.norm = make_norm(config)

    @abstractmethod
    def table(self, rows: Rows) -> Table:
        """The coefficients of each row, in plain PyTorch."""

    @abstractmethod
    def explicit_table(self, rows: Rows) -> tuple[Table, Saved]:
        """`table`, and what its backward needs. `rows` need not be kept."""

    @abstractmethod
    def explicit_table_backward(self, dtable: Table, rows: Rows, saved: Saved, drows: Rows) -> tuple[Tensor, ...]:
        """Adds what comes back through the table to `drows`. Returns the gradients of `weights`."""

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The parameters that the table is made of."""
        return self.read, self.mix, self.write, self.dynamic, self.scale

    @property
    def fixed(self) -> Float[Tensor, "n n_and_2"]:
        """The part of the table that is the same for every row."""
        return at_least_float32(torch.cat((self.read[:, None], self.mix, self.write[:, None]), 1))

    @classmethod
    def optim(cls, model: Transformer) -> dict[str, Optim]:
        """What mixes the streams does not decay: they go on as they are where there is nothing to learn."""
        return {name: Optim(decay=False) for name, _ in model.named_parameters() if name.endswith("residual.mix")}

    def coefficients(self, state: States) -> Coefficients:
        """What it does with `state`: read and write [batch, pos, n], mix [batch, pos, n, n]."""
        table = self.table(state.flatten(0, 1)).unflatten(0, state.shape[:2])
        return Coefficients(table[..., 0], table[..., 1:-1], table[..., -1])

    def begin(self, x: Stream) -> States:
        return x.unsqueeze(-2).repeat(1, 1, self.n, 1)

    def begin_backward(self, dstate: States) -> Stream:
        return dstate.sum(-2)

    def naive(self, state: States, branch: Branch, *args: Any) -> States:
        """`forward` as the formula says it: what `forward` is tested against."""
        read, mix, write = self.coefficients(state)
        y = branch(self.norm(torch.einsum("bpi,bpid->bpd", read.to(state.dtype), state)), *args)
        mixed = torch.einsum("bpij,bpid->bpjd", mix.to(state.dtype), state)
        return mixed + write.to(y.dtype).unsqueeze(-1) * y.unsqueeze(-2)

    def forward(self, state: States, branch: Branch, *args: Any) -> States:
        if torch._C._len_torch_function_stack():  # somebody records every function of a tensor: a trace, say
            return self.naive(state, branch, *args)
        read, mixed, write = _Read.apply(state, self, *self.weights)
        return _Write.apply(mixed, write, branch(self.norm(read), *args))

    def explicit_forward(self, state: States, branch: Branch, *args: Any) -> tuple[States, Saved]:
        """Forgets the norm of what the branch reads, which is cheaper to compute again than to keep."""
        rows = state.flatten(0, 1)
        with without_autocast(rows):
            table, of_table = self.explicit_table(rows)
            read = weighted(table[..., :1], rows).view(*state.shape[:2], -1)
        normed, of_norm = self.norm.explicit_forward(read)
        write, (_, *of_branch) = branch.explicit_forward(normed, *args)
        with without_autocast(rows):
            y = weighted(table[..., 1:-1], rows)
            add_outer(y, table[..., -1], write.flatten(0, 1))
        return y.view(state.shape), (branch, state, table, write, of_table, of_norm, of_branch)

    def explicit_backward(self, dstate: States, saved: Saved, parts: Receiver | None = None) -> States:
        branch, state, table, write, of_table, of_norm, of_branch = saved
        rows, dy = state.flatten(0, 1), dstate.flatten(0, 1).contiguous()
        with without_autocast(rows):
            dwrite = weighted(table[..., -1:], dy).view(write.shape).to(write.dtype)
        dnormed = branch.explicit_backward(dwrite, (self.norm.explicit_again(of_norm), *of_branch))
        dread = self.norm.explicit_backward(dnormed, of_norm).flatten(0, 1)

        with without_autocast(rows):
            identity = weighted(table[..., 1:-1].mT, dy)
            into = identity if parts is None else torch.zeros_like(identity)
            dtable = dtable_of(table, rows, dread, dy)
            dtable[..., -1] = dots(dy, write.flatten(0, 1))
            add_outer(into, table[..., 0], dread)
            gradients = self.explicit_table_backward(dtable, rows, of_table, into)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            accumulate(weight, gradient)
        identity, into = identity.view(state.shape), into.view(state.shape)
        return into if parts is None else joined(identity, into, parts)

    def end(self, state: States) -> Stream:
        return state.sum(-2)

    def explicit_end(self, state: States) -> tuple[Stream, Saved]:
        return state.sum(-2), ()

    def explicit_end_backward(self, dx: Stream, saved: Saved) -> States:  # noqa: ARG002 - a sum hands on what it gets
        return dx.unsqueeze(-2).repeat(1, 1, self.n, 1)


class _Read(torch.autograd.Function):
    """State to what the branch reads, to the mixed streams, and to how each is written, in the explicit pair's steps.

    By itself autograd would walk over all streams some ten times.
    """

    @staticmethod
    def forward(ctx: Any, state: States, connection: Streams, *weights: Tensor) -> tuple[Tensor, States, Tensor]:
        with without_autocast(state):
            rows = state.flatten(0, 1).contiguous()
            table, ctx.of_table = connection.explicit_table(rows)
            read, mixed = weighted(table[..., :1], rows), weighted(table[..., 1:-1], rows)
        ctx.connection, ctx.weights = connection, len(weights)
        ctx.save_for_backward(state, table)
        # Not `view`: autograd lets nobody write to one of several views, which `_Write` does.
        mixed = torch.ops.aten._unsafe_view(mixed, state.shape)
        return read.view(*state.shape[:2], -1), mixed, table[..., -1].contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dread: Tensor, dmixed: States, dwrite: Tensor) -> tuple[Any, ...]:
        state, table = ctx.saved_tensors
        rows, dread, dy = state.flatten(0, 1).contiguous(), dread.flatten(0, 1).contiguous(), dmixed.flatten(0, 1)
        with without_autocast(state):
            dy = dy.contiguous()
            dtable = dtable_of(table, rows, dread, dy)
            dtable[..., -1] = dwrite
            drows = weighted(table[..., 1:-1].mT, dy)
            add_outer(drows, table[..., 0], dread)
            gradients = ctx.connection.explicit_table_backward(dtable, rows, ctx.of_table, drows)
        return drows.view(state.shape), None, *gradients


class _Write(torch.autograd.Function):
    """Adds what the branch writes to the mixed streams, in place."""

    @staticmethod
    def forward(ctx: Any, mixed: States, weight: Tensor, write: Stream) -> States:
        ctx.save_for_backward(weight, write)
        ctx.mark_dirty(mixed)
        add_outer(mixed.view(-1, *mixed.shape[2:]), weight, write.flatten(0, 1))
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dstate: States) -> tuple[States, Tensor, Stream]:
        weight, write = ctx.saved_tensors
        with without_autocast(dstate):
            dy = dstate.flatten(0, 1).contiguous()
            dweight = dots(dy, write.flatten(0, 1)).to(weight.dtype)
            dwrite = weighted(weight.unsqueeze(-1), dy).view(write.shape)
        return dstate, dweight, dwrite.to(write.dtype)


def weighted(weights: Float[Tensor, "rows n m"], rows: Rows) -> Float[Tensor, "rows m d_model"]:
    """y_j = Σ_i weights_ij rows_i, for each row a product of a tiny matrix with n long vectors.

    Calling a matrix product for each of them costs a CPU more than it computes. A bag of embeddings is the same sum,
    and its kernel takes a third of the time: the streams are its table, m bags a row.
    """
    weights = weights.to(rows.dtype)
    count, n, m = weights.shape
    if rows.device.type != "cpu" or rows.dtype != torch.float32:
        return weights.mT @ rows
    first = torch.arange(0, count * m * n, n, dtype=torch.int32)
    of_row = torch.arange(count * n, dtype=torch.int32).view(count, 1, n).expand(count, m, n)
    table, weights = rows.reshape(count * n, -1), weights.mT.reshape(-1)
    bags = F.embedding_bag(of_row.reshape(-1), table, first, mode="sum", per_sample_weights=weights)
    return bags.view(count, m, -1)


def dots(rows: Rows, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows n"]:
    """⟨rows_i, x⟩: what d(weight_i) is where weight_i x was added to rows_i, or weight_i rows_i to x."""
    return (x.to(rows.dtype).unsqueeze(1) @ rows.mT).squeeze(1)


def dtable_of(table: Table, rows: Rows, dread: Float[Tensor, "rows d_model"], dy: Rows) -> Table:
    """The gradients of a and A: da_i = ⟨X_i, dh⟩, dA_ij = ⟨X_i, dY_j⟩. The last column, db, is still to come."""
    dtable = torch.empty_like(table)
    dtable[..., 0] = dots(rows, dread)
    dtable[..., 1:-1] = torch.einsum("rid,rjd->rij", rows, dy)  # in half the time of rows @ dy.mT
    return dtable


def add_outer(rows: Rows, weight: Float[Tensor, "rows n"], x: Float[Tensor, "rows d_model"]) -> None:
    """rows_i ← rows_i + weight_i x."""
    rows.addcmul_(weight.to(rows.dtype).unsqueeze(-1), x.to(rows.dtype).unsqueeze(-2))
