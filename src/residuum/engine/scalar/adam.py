"""AdamW, with decay on matrices only."""

from __future__ import annotations

import math

from residuum.engine.scalar.gpt import Parameters
from residuum.engine.scalar.value import Value


class AdamW:
    """θ ← θ − lr (m̂ / (√v̂ + ε) + λ θ), with λ = `weight_decay` for matrices and 0 for vectors.

    m and v are running means of the gradient g and of g²; both start at 0, so m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ)
    undo that start's pull at step t. Source: Loshchilov, Hutter 2017, https://arxiv.org/abs/1711.05101.
    """

    def __init__(
        self,
        parameters: Parameters,
        weight_decay: float = 0.0,
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
    ) -> None:
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.weights: list[Value] = []
        self.decays: list[float] = []
        for values in parameters.values():
            is_matrix = isinstance(values[0], list)
            flat = [value for row in values for value in row] if is_matrix else values
            self.weights += flat
            self.decays += [weight_decay if is_matrix else 0.0] * len(flat)
        self.m = [0.0] * len(self.weights)
        self.v = [0.0] * len(self.weights)
        self.steps = 0

    def step(self, lr: float, clip: float = 0.0) -> float:
        """Update every weight and set its `grad` to 0. Returns the gradient's norm.

        A norm above `clip` is scaled down to it; 0 never does.
        """
        norm = math.sqrt(sum(weight.grad * weight.grad for weight in self.weights))
        shrink = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        self.steps += 1
        stride = lr / (1.0 - self.beta1**self.steps)
        unbias = 1.0 / math.sqrt(1.0 - self.beta2**self.steps)
        keep1, keep2, eps, m, v = self.beta1, self.beta2, self.eps, self.m, self.v
        for i, (weight, decay) in enumerate(zip(self.weights, self.decays, strict=True)):
            g = weight.grad * shrink
            m[i] = first = keep1 * m[i] + (1.0 - keep1) * g
            v[i] = second = keep2 * v[i] + (1.0 - keep2) * g * g
            weight.data -= lr * decay * weight.data + stride * first / (math.sqrt(second) * unbias + eps)
            weight.grad = 0.0
        return norm
