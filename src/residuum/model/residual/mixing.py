"""What is done with several streams and a table of coefficients for each row: read, mixed, written, and the way back.

A table's column 0 is a, the last b, those between are A. In float32 on a CPU all of it is compiled, where the extra
`packed` has brought Numba (`model/kernels.py`); elsewhere, and to a compiler that follows the pass, it is PyTorch.
"""

from __future__ import annotations

import importlib
import os
import threading
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, "rows n d_model"]
Row = Float[Tensor, "rows d_model"]
Table = Float[Tensor, "rows n n_and_2"]
PerStream = Float[Tensor, "rows n"]

MOST = 64
"""Streams over which loops are unrolled; Numba refuses a thousand."""

_ONE_AT_A_TIME = threading.Lock()  # one of Numba's threading layers ends the process that calls it from two threads
_FIRST = os.getpid()


def read(table: Table, rows: Rows) -> Row:
    """h = Σ_i a_i X_i."""
    h = torch.empty_like(rows[:, 0])
    if not compiled("read", table, rows, h):
        h = weighted(table[..., :1], rows).squeeze(1)
    return h


def mix(table: Table, rows: Rows, write: Row) -> Rows:
    """Y_j = Σ_i A_ij X_i + b_j w."""
    y = torch.empty_like(rows)
    if not compiled("mix", streams_of(rows), table, rows, write, y):
        y = weighted(table[..., 1:-1], rows)
        add_outer(y, table[..., -1], write)
    return y


def written_back(table: Table, dy: Rows, write: Row) -> tuple[Row, Table]:
    """dw = Σ_j b_j dY_j, and a table of gradients whose last column, db_j = ⟨dY_j, w⟩, alone is filled."""
    dwrite, dtable = torch.empty_like(write), torch.empty_like(table)
    if not compiled("written_back", table, dy, write, dwrite, dtable):
        dwrite = weighted(table[..., -1:], dy).squeeze(1).to(write.dtype)
        dtable[..., -1] = dots(dy, write)
    return dwrite, dtable


def table_back(rows: Rows, dread: Row, dy: Rows, dtable: Table) -> None:
    """Fills all but the last column of `dtable`: da_i = ⟨X_i, dh⟩, dA_ij = ⟨X_i, dY_j⟩."""
    if not compiled("table_back", rows, dread, dy, dtable):
        dtable[..., 0] = dots(rows, dread)
        dtable[..., 1:-1] = torch.einsum("rid,rjd->rij", rows, dy)  # in half the time of rows @ dy.mT


def rows_back(table: Table, rows: Rows, dread: Row, dy: Rows, size: PerStream, drows: Rows) -> None:
    """dX_i ← dX_i + Σ_j A_ij dY_j + a_i dh + size_i X_i."""
    if not compiled("rows_back", streams_of(rows), table, rows, dread, dy, size, drows):
        drows += weighted(table[..., 1:-1].mT, dy)
        add_outer(drows, table[..., 0], dread)
        drows.addcmul_(rows, size.to(rows.dtype).unsqueeze(-1))


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
    table, weights = rows.reshape(count * n, rows.shape[-1]), weights.mT.reshape(-1)
    bags = F.embedding_bag(of_row.reshape(-1), table, first, mode="sum", per_sample_weights=weights)
    return bags.view(count, m, rows.shape[-1])


def dots(rows: Rows, x: Row) -> PerStream:
    """⟨rows_i, x⟩: what d(weight_i) is where weight_i x was added to rows_i, or weight_i rows_i to x."""
    return (x.to(rows.dtype).unsqueeze(1) @ rows.mT).squeeze(1)


def add_outer(rows: Rows, weight: PerStream, x: Row) -> None:
    """rows_i ← rows_i + weight_i x."""
    rows.addcmul_(weight.to(rows.dtype).unsqueeze(-1), x.to(rows.dtype).unsqueeze(-2))


def streams_of(rows: Rows) -> tuple[int, ...]:
    """Nothing but its length."""
    return (0,) * rows.shape[1]


def compiled(name: str, *arguments: Tensor | tuple[int, ...]) -> bool:
    """Call that function of `kernels.py`, which writes into some of `arguments`; False where that cannot be done."""
    followed = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack()
    if followed or not all(map(_can_be_given, arguments)) or (found := _kernels(os.getpid())) is None:
        return False
    numba, kernels = found
    arrays = [each if isinstance(each, tuple) else each.detach().numpy() for each in arguments]
    ours, theirs = torch.get_num_threads(), numba.get_num_threads()
    with _ONE_AT_A_TIME:
        try:
            numba.set_num_threads(min(ours, numba.config.NUMBA_NUM_THREADS))
            getattr(kernels, name)(*arrays)
        except OSError:  # there is no room on the disk to keep what was compiled
            setattr(kernels, name, numba.njit(**kernels.OPTIONS)(getattr(kernels, name).py_func))
            getattr(kernels, name)(*arrays)
        finally:
            numba.set_num_threads(theirs)
            torch.set_num_threads(ours)  # starting its threads, Numba may have told PyTorch's how many they are
    return True


def _can_be_given(argument: Tensor | tuple[int, ...]) -> bool:
    if isinstance(argument, tuple):
        return len(argument) <= MOST
    plain = type(argument) is Tensor and argument.device.type == "cpu" and argument.dtype == torch.float32
    return plain and argument.is_contiguous()


@cache
def _kernels(process: int) -> tuple[Any, Any] | None:
    """Numba, and what it compiles; neither in a forked process, where its threads are not."""
    if process != _FIRST:
        return None
    try:
        numba = importlib.import_module("numba")
        return None if numba.config.DISABLE_JIT else (numba, importlib.import_module("residuum.model.kernels"))
    except ImportError:  # or a Numba that does not know the NumPy that is there
        return None
