"""Several streams side by side: what hyper-connections are made of."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved, accumulate
from residuum.model.norm import make_norm
from residuum.model.precision import at_least_float32, without_autocast
from residuum.model.product import product
from residuum.model.residual.base import Branch, Optim, Receiver, Residual, Stream, joined
from residuum.model.residual.mixing import (
    PerStream,
    Row,
    Rows,
    Table,
    mix,
    read,
    rows_back,
    table_back,
    weighted,
    written_back,
)

if TYPE_CHECKING:
    from residuum.model.transformer import Transformer

STREAMS = 4
"""The number that both papers settle on."""

States = Float[Tensor, "batch pos n d_model"]


class Coefficients(NamedTuple):
    """How much of each stream the branch reads, of stream i stream j is made of (`mix[i, j]`), and each is written."""

    read: Float[Tensor, "*rows n"]
    mix: Float[Tensor, "*rows n n"]
    write: Float[Tensor, "*rows n"]


class TableGradients(NamedTuple):
    """What comes back through a table of coefficients.

    dX = what reaches X otherwise + size_i X_i + columns · matrix, the last over streams alone or over all of a row's
    together. `of_weights` are the gradients of `Streams.weights`.
    """

    size: PerStream
    columns: Float[Tensor, "some columns"]
    matrix: Float[Tensor, "columns width"]
    of_weights: tuple[Tensor, ...]


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
    def explicit_table_backward(self, dtable: Table, rows: Rows, saved: Saved) -> TableGradients:
        """The way back through `table`."""

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
        h, on, b, table = _Read.apply(state, self, *self.weights)
        return _Write.apply(on, b, table, branch(self.norm(h), *args))

    def explicit_forward(self, state: States, branch: Branch, *args: Any) -> tuple[States, Saved]:
        """Forgets the norm of what the branch reads, which is cheaper to compute again than to keep."""
        rows = state.flatten(0, 1)
        with without_autocast(rows):
            table, of_table = self.explicit_table(rows)
            h = read(table, rows).view(*state.shape[:2], -1)
        normed, of_norm = self.norm.explicit_forward(h)
        write, (_, *of_branch) = branch.explicit_forward(normed, *args)
        with without_autocast(rows):
            y = mix(table, rows, write.flatten(0, 1))
        return y.view(state.shape), (branch, state, table, write, of_table, of_norm, of_branch)

    def explicit_backward(self, dstate: States, saved: Saved, parts: Receiver | None = None) -> States:
        branch, state, table, write, of_table, of_norm, of_branch = saved
        rows, dy = state.flatten(0, 1), dstate.flatten(0, 1).contiguous()
        with without_autocast(rows):
            dwrite, dtable = written_back(table, dy, write.flatten(0, 1))
        dnormed = branch.explicit_backward(dwrite.view(write.shape), (self.norm.explicit_again(of_norm), *of_branch))
        dread = self.norm.explicit_backward(dnormed, of_norm).flatten(0, 1)
        with without_autocast(rows):
            drows, gradients = self.rows_backward(table, of_table, rows, dread, dy, dtable)
            identity = None if parts is None else weighted(table[..., 1:-1].mT, dy)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            accumulate(weight, gradient)
        into = drows.view(state.shape)
        if parts is None or identity is None:
            return into
        return joined(identity.view(state.shape), into - identity.view(state.shape), parts)

    def rows_backward(
        self, table: Table, of_table: Saved, rows: Rows, dread: Row, dy: Rows, dtable: Table
    ) -> tuple[Rows, tuple[Tensor, ...]]:
        """dX and the gradients of `weights`. Of `dtable` the last column is there, the others are written."""
        table_back(rows, dread, dy, dtable)
        through = self.explicit_table_backward(dtable, rows, of_table)
        drows = product(through.columns, through.matrix).to(rows.dtype).view(rows.shape)
        rows_back(table, rows, dread, dy, through.size, drows)
        return drows, through.of_weights

    def end(self, state: States) -> Stream:
        return state.sum(-2)

    def explicit_end(self, state: States) -> tuple[Stream, Saved]:
        return state.sum(-2), ()

    def explicit_end_backward(self, dx: Stream, saved: Saved) -> States:  # noqa: ARG002 - a sum hands on what it gets
        return dx.unsqueeze(-2).repeat(1, 1, self.n, 1)


class _Read(torch.autograd.Function):
    """State to what the branch reads, and on to `_Write`; by itself autograd would walk over all streams often.

    The state that goes on to `_Write` has dY for its gradient, not A dY: all that comes back to the state does so here.
    """

    @staticmethod
    def forward(ctx: Any, state: States, connection: Streams, *_weights: Tensor) -> tuple[Tensor, ...]:
        with without_autocast(state):
            rows = state.flatten(0, 1).contiguous()
            table, ctx.of_table = connection.explicit_table(rows)
            h = read(table, rows)
        ctx.connection = connection
        ctx.save_for_backward(state, table)
        ctx.mark_non_differentiable(table)
        return h.view(*state.shape[:2], -1), state.view_as(state), table[..., -1].contiguous(), table

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dh: Tensor, dstate: States, db: Tensor, _: Tensor) -> tuple[Any, ...]:
        state, table = ctx.saved_tensors
        rows, dh, dy = (each.flatten(0, 1).contiguous() for each in (state, dh, dstate))
        dtable = torch.empty_like(table)
        dtable[..., -1] = db
        with without_autocast(state):
            drows, gradients = ctx.connection.rows_backward(table, ctx.of_table, rows, dh, dy, dtable)
        return drows.view(state.shape), None, *gradients


class _Write(torch.autograd.Function):
    """The mixed streams and, added to each, what the branch writes."""

    @staticmethod
    def forward(ctx: Any, state: States, _b: Tensor, table: Table, write: Stream) -> States:
        ctx.save_for_backward(table, write)
        with without_autocast(state):
            y = mix(table, state.flatten(0, 1).contiguous(), write.flatten(0, 1).contiguous())
        return y.view(state.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dstate: States) -> tuple[States, Tensor, None, Stream]:
        table, write = ctx.saved_tensors
        with without_autocast(dstate):
            dy = dstate.flatten(0, 1).contiguous()
            dwrite, dtable = written_back(table, dy, write.flatten(0, 1).contiguous())
        return dstate, dtable[..., -1], None, dwrite.view(write.shape)
