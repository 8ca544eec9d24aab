"""A ternary decoder on packed weights, compiled by Numba: two bits a weight, no compiler on the user's machine.

Ternary matrices are packed as Hugging Face does: byte row r holds, in its bits 2i and 2i + 1, weight row
i · (rows / 4) + r, each value plus one. One byte row is therefore four weight rows that share every load of the input,
and the added one is taken off with the input's own sum: Σ w x = Σ (w + 1) x − Σ x.

All threads run `forward` on the same arrays. Each takes its share of rows and heads, and waits for the others five
times a layer: a wait costs a tenth of a microsecond, a parallel region of Numba's 2 or 75 (by its threading layer).

One file, because Numba's cache on disk looks for changes in the file of the function that was called, and in no other.
`reference.py` says the same in NumPy. Needs the extra `packed`.
"""

# ruff: noqa: ARG001 - Numba hands an intrinsic more than each of them needs

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import config, extending, njit, types
from numba.core import cgutils

from residuum.kept import kept

intrinsic: Any = extending.intrinsic  # whose type does not know that compiled code leaves the context out

I8, I16, I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)

# -- the product -------------------------------------------------------------------------------------------------------

LANES = {"avx512vnni": 64, "avx2": 32, "any": 64}
"""Columns that one pass of the innermost loop reads, by the instructions that it is made of: a packed matrix has a
multiple of 64, whatever the CPU."""

AHEAD = 4096
"""Bytes between the weights in use and those asked for: a step reads every weight once, so memory sets its pace."""


def best_dot() -> str:
    """The fastest of LANES that this CPU has. `any` is plain arithmetic, which LLVM turns into what there is.

    Where Numba was told to compile for another CPU (NUMBA_CPU_NAME) nothing more is certain: LLVM would abort.
    """
    told = any(vars(config)[name] is not None for name in ("CPU_NAME", "CPU_FEATURES"))
    has = {} if told else get_host_cpu_features()
    return "avx512vnni" if has.get("avx512vnni") else "avx2" if has.get("avx2") else "any"


def tile(tokens: int, dot: str) -> Callable[..., None]:
    """Build an intrinsic f(packed[rows / 4, columns], row, x[:, columns], first, sums) for compiled code, with

    sums[4 t + i] = Σ_c (packed[row, c] >> 2i & 3) · x[first + t, c]  for t < tokens, i < 4: exact, in int32.

    `packed` is uint8 without a field of 3, `x` int8, both C-contiguous; columns is a multiple of 64 below 2¹⁹.
    """
    lanes = LANES[dot]

    @intrinsic
    def sums_of(context: Any, packed: Any, row: Any, x: Any, first: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            weights, inputs, into = (
                context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2, 4)
            )
            columns = builder.extract_value(weights.shape, 1)
            below = builder.gep(weights.data, [builder.mul(arguments[1], columns)])
            rows = [builder.add(arguments[3], columns.type(t)) for t in range(tokens)]
            xs = [builder.gep(inputs.data, [builder.mul(r, columns)]) for r in rows]
            zero = ir.VectorType(I32, lanes // 4)(None)
            totals = [[cgutils.alloca_once_value(builder, zero) for _ in range(4)] for _ in range(tokens)]
            with cgutils.for_range(builder, builder.udiv(columns, columns.type(lanes))) as loop:
                offset = builder.mul(loop.index, columns.type(lanes))
                _fetch(builder, builder.gep(below, [builder.add(offset, offset.type(AHEAD))]))
                planes = _planes(builder, _load(builder, builder.gep(below, [offset]), lanes))
                for x, four in zip(xs, totals, strict=True):
                    token = _load(builder, builder.gep(x, [offset]), lanes)
                    for total, plane in zip(four, planes, strict=True):
                        builder.store(_add_dot(builder, builder.load(total), plane, token, dot), total)
            for t, four in enumerate(totals):
                y = _total(builder, [builder.load(total) for total in four])
                y = builder.ashr(y, ir.Constant(y.type, [0, 2, 4, 0]))  # exact: see _planes
                pointer = builder.gep(into.data, [columns.type(4 * t)])
                builder.store(y, builder.bitcast(pointer, y.type.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(packed, row, x, first, sums), generate

    return sums_of


def _fetch(builder: Any, pointer: Any) -> None:
    """Ask for the cache line at `pointer`; one that does not exist is no fault."""
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(3), I32(1))  # to read, to keep, data


def _load(builder: Any, pointer: Any, lanes: int) -> Any:
    return builder.load(builder.bitcast(pointer, ir.VectorType(I8, lanes).as_pointer()), align=1)


def _planes(builder: Any, byte: Any) -> list[Any]:
    """The four weights in each byte. The middle two stay where they are, 4 and 16 times too large: so do their sums."""
    lanes = byte.type.count
    low = [builder.and_(byte, ir.Constant(byte.type, [3 << 2 * i] * lanes)) for i in range(3)]
    return [*low, builder.lshr(byte, ir.Constant(byte.type, [6] * lanes))]


def _add_dot(builder: Any, total: Any, plane: Any, x: Any, dot: str) -> Any:
    """total + plane · x, neighbours or strangers added in fours. 0 ≤ plane ≤ 32 and |x| ≤ 128."""
    if dot == "avx512vnni":
        # LLVM once declared the bytes as 32-bit words; it still takes that form and rewrites it.
        words = [builder.bitcast(v, total.type) for v in (plane, x)]
        return _call(builder, "llvm.x86.avx512.vpdpbusd.512", total.type, total, *words)
    if dot == "avx2":
        half = ir.VectorType(I16, x.type.count // 2)
        pairs = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", half, plane, x)  # at most 2 · 32 · 128: no saturation
        ones = ir.Constant(half, [1] * half.count)
        return builder.add(total, _call(builder, "llvm.x86.avx2.pmadd.wd", total.type, pairs, ones))
    wide, quarter = ir.VectorType(I16, x.type.count), total.type.count
    product = builder.mul(builder.sext(plane, wide), builder.sext(x, wide))
    four = [_pick(builder, product, range(k, k + quarter)) for k in range(0, 4 * quarter, quarter)]
    in_16_bits = builder.add(builder.add(four[0], four[1]), builder.add(four[2], four[3]))  # at most 4 · 32 · 128
    return builder.add(total, builder.sext(in_16_bits, total.type))


def _total(builder: Any, four: list[Any]) -> Any:
    """The sums of four vectors, as one vector of four: neighbours are added in all of them at once."""
    lanes = four[0].type.count
    both = _join(builder, _join(builder, four[0], four[1], lanes), _join(builder, four[2], four[3], lanes), 2 * lanes)
    while both.type.count > 4:
        even, odd = (_pick(builder, both, range(k, both.type.count, 2)) for k in (0, 1))
        both = builder.add(even, odd)
    return both


def _join(builder: Any, a: Any, b: Any, lanes: int) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, 2 * lanes), list(range(2 * lanes))))


def _pick(builder: Any, vector: Any, lanes: range) -> Any:
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


TOGETHER = 4 if best_dot() == "avx512vnni" else 2
"""Tokens of a prompt that share a pass over the weights: as many as have room for four sums each in the registers."""
BLOCK = 16
"""Byte rows that all tokens go through before the next: they stay in the nearest cache, and so does what they write."""
_one, _several = tile(1, best_dot()), tile(TOGETHER, best_dot())


@njit(nogil=True, error_model="numpy")
def project(packed: Any, unit: Any, x: Any, step: Any, total: Any, y: Any, add: bool, first: int, last: int) -> None:
    """y[t] = W x[t], or += with `add`, for W's byte rows from `first` to `last`; step, total: see `quantise`.

    `unit` is what a weight of 1 is worth. The product is exact; then y = sums · (step · unit), as `BitLinear` has it.
    """
    tokens, quarter = x.shape[0], packed.shape[0]
    whole = tokens - tokens % TOGETHER
    sums = np.empty(4 * TOGETHER, np.int32)
    for block in range(first, last, BLOCK):
        for t in range(0, whole, TOGETHER):
            for r in range(block, min(block + BLOCK, last)):
                _several(packed, r, x, t, sums)
                for j in range(TOGETHER):
                    for i in range(4):
                        write = np.float32(sums[4 * j + i] - total[t + j]) * (step[t + j] * unit)
                        y[t + j, i * quarter + r] = y[t + j, i * quarter + r] + write if add else write
        for t in range(whole, tokens):
            for r in range(block, min(block + BLOCK, last)):
                _one(packed, r, x, t, sums)
                for i in range(4):
                    write = np.float32(sums[i] - total[t]) * (step[t] * unit)
                    y[t, i * quarter + r] = y[t, i * quarter + r] + write if add else write


# -- the other parts: loops that LLVM makes vectors of, which is why they read so plainly ------------------------------
#
# Only sums may be taken in another order: each is always over the same entries. A loop that writes is rounded as it
# stands, for LLVM keeps two of it, with vectors and without, and chooses by where in memory the arrays happen to lie,
# or by how many entries a thread's share leaves over.
#
# What is not finite is handed on up to the scores, where it is refused. Beside a NaN max(a, b) is a, as in Python.

ANY_ORDER = {"reassoc", "contract", "nsz"}
"""What LLVM may do to a sum. Not all of `fastmath`, which also promises that nothing is infinite or NaN."""


@njit(nogil=True, fastmath=ANY_ORDER)
def _sum(x: Any) -> Any:
    total = np.float32(0)
    for i in range(x.size):
        total += x[i]
    return total


@njit(nogil=True, fastmath=ANY_ORDER)
def _sum_of_squares(x: Any, mean: Any) -> Any:
    total = np.float32(0)
    for i in range(x.size):
        total += (x[i] - mean) * (x[i] - mean)
    return total


@njit(nogil=True, fastmath=ANY_ORDER)
def _dot(x: Any, y: Any) -> Any:
    total = np.float32(0)
    for i in range(x.size):
        total += np.float32(x[i]) * y[i]
    return total


@njit(nogil=True, error_model="numpy")
def normalise(x: Any, gain: Any, eps: float, centred: bool, y: Any) -> None:
    """y = x · gain / √(mean(x²) + ε), layer norm where `centred`; without gains (no norm at this place) y = x.

    The mean is over as many entries as there are gains: what follows is padding.
    """
    if gain.size == 0:
        for i in range(x.size):
            y[i] = x[i]
        return
    x, size = x[: gain.size], np.float32(gain.size)
    mean = _sum(x) / size if centred else np.float32(0)
    once = np.float32(1) / np.sqrt(_sum_of_squares(x, mean) / size + np.float32(eps))
    for i in range(gain.size):
        y[i] = (x[i] - mean) * once * gain[i]


@intrinsic
def _as_float(context: Any, bits: Any) -> Any:
    """The float32 whose bits these are."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


INFINITY = 0x7F800000
"""Its bits, as a float32."""


@njit(nogil=True, error_model="numpy")
def quantise(x: Any, y: Any) -> tuple[Any, Any]:
    """y = round(x · (127 / max |x|)) as int8, halves to even: the levels of `model/quantise.py`, bit by bit.

    Returns what one step of y is worth, NaN where an entry is not finite, and the sum of y.
    """
    bits, highest = x.view(np.int32), np.int32(0)
    for i in range(x.size):
        highest = max(highest, bits[i] & np.int32(0x7FFFFFFF))  # without the sign: in order, infinity and NaN last
    peak = max(_as_float(highest), np.float32(1e-5)) if highest < INFINITY else np.float32(np.nan)
    per_unit, total = np.float32(127) / peak, np.int32(0)
    for i in range(x.size):
        y[i] = np.int32(np.rint(x[i] * per_unit))
        total += y[i]
    return peak / np.float32(127), total


@njit(nogil=True)
def quantise_all(x: Any, gain: Any, eps: float, centred: bool, normal: Any, y: Any, step: Any, total: Any) -> None:
    """`normalise`, then `quantise`, each row of x; `normal` is a row to work in. What is padding in y stays 0."""
    width = gain.size if gain.size else x.shape[1]
    for t in range(x.shape[0]):
        normalise(x[t], gain, eps, centred, normal)
        step[t], total[t] = quantise(normal[:width], y[t])


@njit(inline="always")
def exp(x: Any) -> Any:
    """eˣ of a float32 clamped to ±87, to 2⁻²²: Cephes' polynomial, in steps that a loop does for many x at once."""
    x = min(max(x, np.float32(-87)), np.float32(87))
    k = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - k * np.float32(0.693359375) + k * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * _as_float(np.int32((np.int32(k) + 127) << 23))


SILU, SQUARED_RELU, RELU, GELU = 0, 1, 2, 3


@njit(nogil=True, error_model="numpy")
def activate(x: Any, function: int) -> None:
    """x ← f(x). Each f has f(0) = 0, so that padding stays 0."""
    if function == SILU:
        for i in range(x.size):
            x[i] = x[i] / (np.float32(1) + exp(-x[i]))
    elif function == GELU:
        for i in range(x.size):
            x[i] = np.float32(0.5) * x[i] * (np.float32(1) + math.erf(x[i] * np.float32(0.70710678)))
    else:
        for i in range(x.size):
            positive = max(x[i], np.float32(0))
            x[i] = positive * positive if function == SQUARED_RELU else positive


@njit(nogil=True)
def rotate(x: Any, cos: Any, sin: Any) -> None:
    """Turn entries i and i + d_head / 2 of each head by its place's angle."""
    half = cos.size
    for head in range(0, x.size, 2 * half):
        for i in range(head, head + half):
            a, b = x[i], x[i + half]
            x[i] = a * cos[i - head] - b * sin[i - head]
            x[i + half] = b * cos[i - head] + a * sin[i - head]


@njit(nogil=True, error_model="numpy")
def attend(q: Any, keys: Any, values: Any, length: int, weights: Any, y: Any) -> None:
    """y = softmax(q kᵀ / √d_head) v over the first `length` places, for all query heads that share these keys."""
    d_head = keys.shape[1]
    group, once = q.size // d_head, np.float32(1) / np.sqrt(np.float32(d_head))
    for t in range(length):
        for g in range(group):
            weights[g, t] = _dot(q[g * d_head : (g + 1) * d_head], keys[t]) * once
    for g in range(group):
        of_head, peak = weights[g, :length], weights[g, 0]
        for t in range(length):
            peak = max(peak, of_head[t])
        for t in range(length):
            of_head[t] = exp(of_head[t] - peak)
        total = _sum(of_head)
        for t in range(length):
            of_head[t] /= total
    for i in range(y.size):
        y[i] = 0
    for t in range(length):
        for g in range(group):
            for j in range(d_head):
                y[g * d_head + j] += weights[g, t] * values[t, j]


@intrinsic
def _fetch_row(context: Any, matrix: Any, row: Any) -> Any:
    """Ask for the row AHEAD bytes on from the row given."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at = context.make_array(signature.args[0])(context, builder, arguments[0])
        columns = builder.extract_value(at.shape, 1)
        width = builder.mul(columns, columns.type(signature.args[0].dtype.bitwidth // 8))
        offset = builder.add(builder.mul(arguments[1], width), width.type(AHEAD))
        row = builder.gep(builder.bitcast(at.data, I8.as_pointer()), [offset])
        with cgutils.for_range(builder, builder.udiv(width, width.type(64))) as loop:
            _fetch(builder, builder.gep(row, [builder.mul(loop.index, width.type(64))]))
        return context.get_dummy_value()

    return types.void(matrix, types.int64), generate


@njit(nogil=True)
def read_out(head: Any, step: Any, x: Any, y: Any, first: int, last: int) -> None:
    """y = (head · x) · step for rows from `first` to `last`: the input is float32, and not rounded."""
    for r in range(first, last):
        _fetch_row(head, r)
        y[r] = _dot(head[r], x) * step[r]


# -- waiting -----------------------------------------------------------------------------------------------------------

LINE = 16
"""int64 numbers in two cache lines (a CPU may fetch them in pairs)."""


@intrinsic
def _publish(context: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index] = value, after everything that this thread wrote before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        builder.store_atomic(arguments[2], builder.gep(data, [arguments[1]]), "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


@intrinsic
def _observe(context: Any, array: Any, index: Any) -> Any:
    """array[index]; what its writer wrote before is then seen too."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(builder.gep(data, [arguments[1]]), "acquire", 8)

    return types.int64(array, types.int64), generate


@intrinsic
def _yield(context: Any) -> Any:
    """Let another thread have this core, where the system has POSIX's call for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if os.name == "posix":
            _call(builder, "sched_yield", I32)
        return context.get_dummy_value()

    return types.void(), generate


LEFT = 2**63 - 1
"""What a caller writes over all of `rounds` when it cannot bring every thread: who does not come is not waited for."""


@njit(nogil=True)
def wait(rounds: Any, thread: int, threads: int, turn: int) -> int:
    """Until every thread has come for the `turn`-th time; returns the next turn's number.

    Each thread writes its turn in cache lines of its own, and watches the others'.
    """
    _publish(rounds, LINE * thread, turn)
    for other in range(threads):
        looks = 0
        while _observe(rounds, LINE * other) < turn:
            looks += 1
            if looks > 1000:  # some microseconds: the other has lost its core, perhaps to this very loop
                _yield()
    return turn + 1


# -- the decoder -------------------------------------------------------------------------------------------------------


class Weights(NamedTuple):
    """A model: packed uint8 [layer, rows / 4, columns], gains float32 [layer, width]; of width 0: no norm there.

    Likewise a gate of no rows is none, and so are positions, cosines and sines of width 0.
    """

    embedding: Any  # int8 or float32 [vocab, d_model]
    embedding_step: Any  # float32 [vocab]
    positions: Any  # float32 [context, d_model]
    attention_norm: Any
    q: Any
    k: Any
    v: Any
    out_norm: Any
    out: Any
    feedforward_norm: Any
    gate: Any
    up: Any
    down_norm: Any
    down: Any
    step: Any  # float32 [layer, 7]: what a weight of 1 is worth in q, k, v, out, gate, up, down
    final_norm: Any  # float32 [d_model]
    head: Any  # as the embedding, and the embedding itself where they are tied
    head_step: Any
    cos: Any  # float32 [context, d_head / 2]
    sin: Any


class Space(NamedTuple):
    """What a pass of at most `pos` tokens writes to; the last six are each thread's own. Padding is 0, and stays 0."""

    keys: Any  # float32 [layer, kv_heads, context, d_head]
    values: Any
    stream: Any  # float32 [pos, d_model, padded to 4]
    q: Any
    k: Any
    v: Any
    mixed: Any  # float32 [pos, d_model]
    hidden: Any  # float32 [pos, d_ff, padded to 4]
    up: Any
    scores: Any  # float32 [vocab]
    x: Any  # int8 [thread, pos, d_model, padded to 64]
    wide: Any  # int8 [thread, pos, d_ff, padded to 64]
    step: Any  # float32 [thread, pos]
    total: Any  # int32 [thread, pos]
    normal: Any  # float32 [thread, widest]
    weights: Any  # float32 [thread, query heads that share a key, context]


@njit(nogil=True)
def _share(count: int, thread: int, threads: int) -> tuple[int, int]:
    return count * thread // threads, count * (thread + 1) // threads


@partial(kept, nogil=True)
def forward(
    w: Weights,
    s: Space,
    rounds: Any,
    tokens: Any,
    start: int,
    eps: float,
    centred: bool,
    function: int,
    thread: int,
    threads: int,
) -> None:
    """Read `tokens` (int64), the first at place `start`; leave the scores of what follows the last one in s.scores.

    `centred`: the norms of the stream are layer norms. `function` is the feed-forward's non-linearity.
    Every thread up to `threads` must be running this, with the same arguments, or those that do wait for ever; `rounds`
    (int64, LINE for each thread, 0 at first) is where they see each other.
    """
    n, (kv_heads, _, d_head) = tokens.size, s.keys.shape[1:]
    d, gated, rotary = w.embedding.shape[1], w.gate.shape[1] > 0, w.cos.shape[1] > 0
    stream, q, k, v, mixed = s.stream[:n], s.q[:n], s.k[:n], s.v[:n], s.mixed[:n]
    hidden, up, x, wide = s.hidden[:n], s.up[:n], s.x[thread, :n], s.wide[thread, :n]
    step, total, normal = s.step[thread], s.total[thread], s.normal[thread]
    of_d, to_d = _share(w.q.shape[1], thread, threads)
    of_kv, to_kv = _share(w.k.shape[1], thread, threads)
    of_ff, to_ff = _share(w.up.shape[1], thread, threads)
    of_head, to_head = _share(kv_heads, thread, threads)
    of_word, to_word = _share(w.head.shape[0], thread, threads)
    turn = wait(rounds, thread, threads, 1)  # a pass that was given up may still be using the space
    for t in range(thread, n, threads):
        for i in range(d):
            stream[t, i] = np.float32(w.embedding[tokens[t], i]) * w.embedding_step[tokens[t]]
        for i in range(w.positions.shape[1]):
            stream[t, i] += w.positions[start + t, i]
    turn = wait(rounds, thread, threads, turn)
    for layer in range(w.q.shape[0]):
        # Normalising and quantising cost so little that each thread does all of it for itself and saves a wait.
        quantise_all(stream, w.attention_norm[layer], eps, centred, normal, x, step, total)
        project(w.q[layer], w.step[layer, 0], x, step, total, q, False, of_d, to_d)
        project(w.k[layer], w.step[layer, 1], x, step, total, k, False, of_kv, to_kv)
        project(w.v[layer], w.step[layer, 2], x, step, total, v, False, of_kv, to_kv)
        turn = wait(rounds, thread, threads, turn)
        for h in range(of_head, to_head):
            keys, values = s.keys[layer, h], s.values[layer, h]
            of_q, to_q = _share(d, h, kv_heads)
            for t in range(n):
                key = k[t, h * d_head : (h + 1) * d_head]
                if rotary:
                    rotate(key, w.cos[start + t], w.sin[start + t])
                    rotate(q[t, of_q:to_q], w.cos[start + t], w.sin[start + t])
                for j in range(d_head):
                    keys[start + t, j] = key[j]
                    values[start + t, j] = v[t, h * d_head + j]
                attend(q[t, of_q:to_q], keys, values, start + t + 1, s.weights[thread], mixed[t, of_q:to_q])
        turn = wait(rounds, thread, threads, turn)
        quantise_all(mixed, w.out_norm[layer], eps, False, normal, x, step, total)
        project(w.out[layer], w.step[layer, 3], x, step, total, stream, True, of_d, to_d)
        turn = wait(rounds, thread, threads, turn)
        quantise_all(stream, w.feedforward_norm[layer], eps, centred, normal, x, step, total)
        if gated:
            project(w.gate[layer], w.step[layer, 4], x, step, total, hidden, False, of_ff, to_ff)
        project(w.up[layer], w.step[layer, 5], x, step, total, up if gated else hidden, False, of_ff, to_ff)
        for t in range(n):
            for i in range(0, hidden.shape[1], w.up.shape[1]):
                activate(hidden[t, i + of_ff : i + to_ff], function)
                for j in range(i + of_ff, i + to_ff if gated else 0):
                    hidden[t, j] *= up[t, j]
        turn = wait(rounds, thread, threads, turn)
        quantise_all(hidden, w.down_norm[layer], eps, False, normal, wide, step, total)
        project(w.down[layer], w.step[layer, 6], wide, step, total, stream, True, of_d, to_d)
        turn = wait(rounds, thread, threads, turn)
    normalise(stream[n - 1], w.final_norm, eps, centred, normal)
    read_out(w.head, w.head_step, normal[:d], s.scores, of_word, to_word)
    wait(rounds, thread, threads, turn)
