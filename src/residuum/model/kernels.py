"""What several streams are walked over for, compiled by Numba: each row is in the cache for all that is done with it.

By operations of PyTorch's each of these is a few walks over all streams, and memory sets the pace. `residual/mixing.py`
and `residual/mhc.py` say the same in PyTorch. Rows are shared among threads and never split: the same bits come out
whatever their number. One file, because Numba's cache on disk looks for changes in the file of the function that was
called, and in no other.

Shapes: rows, dy and drows [count, n, d]; x, write and dread [count, d]; table [count, n, n + 2]. All are float32 and
C-contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange

from residuum.kept import kept

LANES = 256
"""Rows whose matrices are balanced side by side."""

ANY_ORDER = {"reassoc", "contract", "nsz"}  # of sums; infinities and NaN stay what they are
OPTIONS: dict[str, Any] = {"parallel": True, "fastmath": ANY_ORDER, "error_model": "numpy"}


def _compiled(function: Callable[..., None]) -> Any:
    return kept(function, **OPTIONS)


@_compiled
def read(table: Any, rows: Any, x: Any) -> None:
    """x = Σ_i a_i rows_i."""
    count, n, d = rows.shape
    for r in prange(count):
        for k in range(d):
            x[r, k] = 0
        for i in range(n):
            a = table[r, i, 0]
            for k in range(d):
                x[r, k] += a * rows[r, i, k]


@_compiled
def mix(streams: Any, table: Any, rows: Any, write: Any, y: Any) -> None:
    """y_j = Σ_i A_ij rows_i + b_j write. `streams` is a tuple as long as there are any: Numba unrolls loops over it."""
    count, n, d = rows.shape
    for r in prange(count):
        a = np.empty(n, np.float32)  # of its own, or LLVM would read each again after every write to y
        for j in range(n):
            b = table[r, j, n + 1]
            for i in range(n):
                a[i] = table[r, i, j + 1]
            for k in range(d):
                total = b * write[r, k]
                for i in range(len(streams)):
                    total += a[i] * rows[r, i, k]
                y[r, j, k] = total


@_compiled
def written_back(table: Any, dy: Any, write: Any, dwrite: Any, dtable: Any) -> None:
    """dwrite = Σ_j b_j dy_j and db_j = ⟨dy_j, write⟩."""
    count, n, d = dy.shape
    for r in prange(count):
        for k in range(d):
            dwrite[r, k] = 0
        for j in range(n):
            b, along = table[r, j, n + 1], np.float32(0)
            for k in range(d):
                dwrite[r, k] += b * dy[r, j, k]
                along += dy[r, j, k] * write[r, k]
            dtable[r, j, n + 1] = along


@_compiled
def table_back(rows: Any, dread: Any, dy: Any, dtable: Any) -> None:
    """da_i = ⟨rows_i, dread⟩ and dA_ij = ⟨rows_i, dy_j⟩."""
    count, n, d = rows.shape
    for r in prange(count):
        for i in range(n):
            along = np.float32(0)
            for k in range(d):
                along += rows[r, i, k] * dread[r, k]
            dtable[r, i, 0] = along
            for j in range(n):
                along = np.float32(0)
                for k in range(d):
                    along += rows[r, i, k] * dy[r, j, k]
                dtable[r, i, j + 1] = along


@_compiled
def rows_back(streams: Any, table: Any, rows: Any, dread: Any, dy: Any, size: Any, drows: Any) -> None:
    """drows_i ← drows_i + Σ_j A_ij dy_j + a_i dread + size_i rows_i. `streams` as in `mix`."""
    count, n, d = rows.shape
    for r in prange(count):
        m = np.empty(n, np.float32)
        for i in range(n):
            a, s = table[r, i, 0], size[r, i]
            for j in range(n):
                m[j] = table[r, i, j + 1]
            for k in range(d):
                total = drows[r, i, k] + a * dread[r, k] + s * rows[r, i, k]
                for j in range(len(streams)):
                    total += m[j] * dy[r, j, k]
                drows[r, i, k] = total


@_compiled
def balance(logits: Any, table: Any, k: Any, us: Any, vs: Any) -> None:
    """a = σ(l_a), b = 2 σ(l_b) and A = `mhc.sinkhorn`(l_A), step by step.

    In arrays of a block's own, which LLVM knows to be apart, all loops are vectorised, and take a fifth of the time.
    Shapes: logits [count, n, n + 2], k [n, n, count], us [times, n, count], vs [times + 1, n, count].
    """
    times, n, count = us.shape
    for block in prange((count + LANES - 1) // LANES):
        first, last = block * LANES, min((block + 1) * LANES, count)
        here = last - first
        own_k = np.empty((n, n, here), np.float32)
        u, v = np.zeros((times, n, here), np.float32), np.zeros((times + 1, n, here), np.float32)
        for r in range(here):
            for i in range(n):
                table[first + r, i, 0] = 1 / (1 + np.exp(-logits[first + r, i, 0]))
                table[first + r, i, n + 1] = 2 / (1 + np.exp(-logits[first + r, i, n + 1]))
                largest = logits[first + r, i, 1]
                for j in range(n):
                    largest = max(largest, logits[first + r, i, j + 1])
                for j in range(n):
                    own_k[i, j, r] = logits[first + r, i, j + 1] - largest
            for j in range(n):
                largest = own_k[0, j, r]
                for i in range(n):
                    largest = max(largest, own_k[i, j, r])
                for i in range(n):
                    own_k[i, j, r] = np.exp(own_k[i, j, r] - largest)
                v[0, j, r] = np.exp(largest)
        for t in range(times):
            for i in range(n):
                for j in range(n):
                    for r in range(here):
                        u[t, i, r] += own_k[i, j, r] * v[t, j, r]
                for r in range(here):
                    u[t, i, r] = 1 / u[t, i, r]
            for j in range(n):
                for i in range(n):
                    for r in range(here):
                        v[t + 1, j, r] += own_k[i, j, r] * u[t, i, r]
                for r in range(here):
                    v[t + 1, j, r] = 1 / v[t + 1, j, r]
        for r in range(here):
            for i in range(n):
                for j in range(n):
                    table[first + r, i, j + 1] = own_k[i, j, r] * u[times - 1, i, r] * v[times, j, r]
        k[:, :, first:last], us[:, :, first:last], vs[:, :, first:last] = own_k, u, v


@_compiled
def balance_back(dtable: Any, table: Any, k: Any, us: Any, vs: Any, dlogits: Any) -> None:
    """The way back through `balance`, as `mhc.sinkhorn_backward` has it."""
    times, n, count = us.shape
    for block in prange((count + LANES - 1) // LANES):
        first, last = block * LANES, min((block + 1) * LANES, count)
        here = last - first
        own_k, u, v = k[:, :, first:last].copy(), us[:, :, first:last].copy(), vs[:, :, first:last].copy()
        dalpha, minus_dbeta = np.zeros((n, here), np.float32), np.zeros((n, here), np.float32)
        direct, through = np.empty((n, n, here), np.float32), np.zeros((n, n, here), np.float32)
        for r in range(here):
            for i in range(n):
                for j in range(n):
                    direct[i, j, r] = dtable[first + r, i, j + 1] * table[first + r, i, j + 1]
                    dalpha[i, r] += direct[i, j, r]
                    minus_dbeta[j, r] -= direct[i, j, r]
        for t in range(times - 1, -1, -1):
            for i in range(n):
                for j in range(n):
                    for r in range(here):
                        share = v[t + 1, j, r] * minus_dbeta[j, r]
                        through[i, j, r] += u[t, i, r] * share
                        dalpha[i, r] += u[t, i, r] * own_k[i, j, r] * share
            minus_dbeta[:] = 0
            for i in range(n):
                for j in range(n):
                    for r in range(here):
                        share = u[t, i, r] * dalpha[i, r]
                        through[i, j, r] -= v[t, j, r] * share
                        minus_dbeta[j, r] += v[t, j, r] * own_k[i, j, r] * share
            dalpha[:] = 0
        for r in range(here):
            for i in range(n):
                a, b = table[first + r, i, 0], table[first + r, i, n + 1]
                dlogits[first + r, i, 0] = dtable[first + r, i, 0] * a * (1 - a)
                dlogits[first + r, i, n + 1] = dtable[first + r, i, n + 1] * b * (1 - b / 2)
                for j in range(n):
                    dlogits[first + r, i, j + 1] = direct[i, j, r] + own_k[i, j, r] * through[i, j, r]
