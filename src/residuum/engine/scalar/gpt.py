"""The Transformer of `residuum.model`, number by number, under the same names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from residuum.engine.scalar.value import (
    Matrix,
    Value,
    Vector,
    attend,
    cross_entropy,
    linear,
    mean,
    rms_norm,
)

Parameters = dict[str, Any]
"""Matrices and vectors of `Value`, under the names that `Transformer.named_parameters()` gives them."""

NOT_COUNTED = -100
ACTIVATIONS: dict[str, Callable[[Value], Value]] = {"relu": Value.relu, "squared_relu": Value.squared_relu}


@dataclass(frozen=True)
class Shape:
    """What of a `ModelConfig` this GPT has, under the same names."""

    vocab_size: int
    context: int = 16
    d_model: int = 16
    n_layers: int = 1
    n_heads: int = 4
    n_kv_heads: int | None = None
    d_ff: int | None = None
    activation: Literal["relu", "squared_relu"] = "relu"
    norm_eps: float = 1e-5
    residual: Literal["pre", "post", "none"] = "pre"
    head: Literal["tied", "untied"] = "tied"
    init_std: float = 0.02
    branch_init: Literal["residual", "gpt2", "zero"] = "residual"

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads


class GPT:
    """Tokens to scores of the token after each. `parameters` are new ones, drawn with `seed`, unless given."""

    def __init__(self, shape: Shape, parameters: Parameters | None = None, seed: int = 0) -> None:
        self.shape = shape
        self.parameters = initial(shape, seed) if parameters is None else parameters

    def loss(self, tokens: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Value:
        """Mean cross-entropy of the targets, in nats per token; a target of −100 counts for nothing."""
        losses = []
        for row, wanted in zip(tokens, targets, strict=True):
            for scores, target in zip(self.scores(row), wanted, strict=True):
                if target != NOT_COUNTED:
                    _check_token(target, self.shape)
                    losses.append(cross_entropy(scores, target))
        return mean(losses) if losses else Value(math.nan)  # 0/0, as in PyTorch

    def scores(self, tokens: Sequence[int]) -> Matrix:
        """Shapes: tokens [pos], scores [pos, vocab]. Raises `ValueError` for more tokens than the context holds."""
        if len(tokens) > self.shape.context:
            raise ValueError(f"{len(tokens)} tokens are more than the model's context of {self.shape.context}")
        embedding, places = self.parameters["embedding.weight"], self.parameters["positions.weight"]
        for token in tokens:
            _check_token(token, self.shape)
        x = _add([embedding[token] for token in tokens], places[: len(tokens)])
        for layer in range(self.shape.n_layers):
            x = self._connect(f"blocks.{layer}.attn", x, self._attention)
            x = self._connect(f"blocks.{layer}.ff", x, self._feedforward)
        if self.shape.residual != "post":
            x = self._norm("final_norm", x)
        return linear(embedding if self.shape.head == "tied" else self.parameters["head.weight"], x)

    def _connect(self, name: str, x: Matrix, branch: Callable[[str, Matrix], Matrix]) -> Matrix:
        match self.shape.residual:
            case "pre":
                return _add(x, branch(name, self._norm(f"{name}_residual.norm", x)))
            case "post":
                return self._norm(f"{name}_residual.norm", _add(x, branch(name, x)))
            case "none":
                return branch(name, x)

    def _attention(self, name: str, x: Matrix) -> Matrix:
        q, k, v = (self._heads(self._linear(f"{name}.{part}", x)) for part in "qkv")
        sharing = len(q) // len(k)  # query heads to one head of keys and values
        scale = 1.0 / math.sqrt(self.shape.d_head)
        joined: Matrix = [[] for _ in x]
        for head, queries in enumerate(q):
            keys, values = k[head // sharing], v[head // sharing]
            for place, query in enumerate(queries):
                (scores,) = linear(keys[: place + 1], [query], scale)
                joined[place] += attend(scores, values[: place + 1])
        return self._linear(f"{name}.out", joined)

    def _heads(self, x: Matrix) -> list[Matrix]:
        """[pos, heads · d_head] -> [heads, pos, d_head]."""
        width = self.shape.d_head
        return [[row[start : start + width] for row in x] for start in range(0, len(x[0]), width)]

    def _feedforward(self, name: str, x: Matrix) -> Matrix:
        activation = ACTIVATIONS[self.shape.activation]
        return self._linear(f"{name}.down", [[activation(h) for h in row] for row in self._linear(f"{name}.up", x)])

    def _linear(self, name: str, x: Matrix) -> Matrix:
        return linear(self.parameters[f"{name}.weight"], x)

    def _norm(self, name: str, x: Matrix) -> Matrix:
        gain: Vector = self.parameters[f"{name}.gain"]
        return [rms_norm(row, gain, self.shape.norm_eps) for row in x]


def initial(shape: Shape, seed: int) -> Parameters:
    """Matrices from N(0, init_std²), a branch's last one narrower or zero, gains of 1: as `Transformer` begins."""
    random = Random(seed)
    std, width = shape.init_std, shape.d_model
    write_std = 0.0 if shape.branch_init == "zero" else std / math.sqrt(2 * shape.n_layers)
    shared = shape.d_head * (shape.n_kv_heads or shape.n_heads)
    d_ff = shape.d_ff or 4 * width

    def matrix(rows: int, columns: int, std: float = std) -> Matrix:
        return [[Value(random.gauss(0.0, std)) for _ in range(columns)] for _ in range(rows)]

    def ones() -> Vector:
        return [Value(1.0) for _ in range(width)]

    made: Parameters = {
        "embedding.weight": matrix(shape.vocab_size, width),
        "positions.weight": matrix(shape.context, width),
    }
    for block in (f"blocks.{layer}" for layer in range(shape.n_layers)):
        if shape.residual != "none":
            made[f"{block}.attn_residual.norm.gain"] = ones()
        made[f"{block}.attn.q.weight"] = matrix(width, width)
        made[f"{block}.attn.k.weight"] = matrix(shared, width)
        made[f"{block}.attn.v.weight"] = matrix(shared, width)
        made[f"{block}.attn.out.weight"] = matrix(width, width, write_std)
        if shape.residual != "none":
            made[f"{block}.ff_residual.norm.gain"] = ones()
        made[f"{block}.ff.up.weight"] = matrix(d_ff, width)
        made[f"{block}.ff.down.weight"] = matrix(width, d_ff, write_std)
    if shape.residual != "post":
        made["final_norm.gain"] = ones()
    if shape.head == "untied":
        made["head.weight"] = matrix(shape.vocab_size, width)
    return made


def _add(a: Matrix, b: Matrix) -> Matrix:
    return [[p + q for p, q in zip(left, right, strict=True)] for left, right in zip(a, b, strict=True)]


def _check_token(token: int, shape: Shape) -> None:
    if not 0 <= token < shape.vocab_size:  # a list would count a negative one from its end
        raise IndexError(f"token {token} is none of the vocabulary's {shape.vocab_size}")
