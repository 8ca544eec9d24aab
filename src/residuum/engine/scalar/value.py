"""Numbers that remember what they were made from, so that a gradient finds its way back.

A GPT comes down to products and sums, and with a node for each of them nearly all the time would go into making nodes.
So what always occurs together is one node here: a whole dot product, the mean that attention takes, the cross-entropy.
Each says in its docstring how its slopes are derived.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from operator import attrgetter, mul

Edge = tuple[Sequence["Value"], Sequence[float]]
_birth = count()


class Value:
    """A number. `edges` say what it was made from: pairs of values v and their slopes ∂self/∂v.

    A value without edges is a leaf, such as a weight; `backward` adds to its `grad`.
    """

    __slots__ = ("birth", "data", "edges", "grad")

    def __init__(self, data: float, *edges: Edge) -> None:
        self.data = data
        self.grad = 0.0
        self.edges = edges
        self.birth = next(_birth)

    def backward(self, scale: float = 1.0) -> None:
        """Add scale · ∂self/∂v to the `grad` of every leaf v.

        The chain rule: dL/dv is the sum of dL/dy · ∂y/∂v over all y made from v. Whatever is made from v is younger
        than v, so going from young to old each sum is whole before it is passed on, and is passed on once.
        """
        made = self._made_from()
        for value in made:
            value.grad = 0.0  # what an earlier call left here has already reached the leaves
        self.grad += scale
        for value in made:
            grad = value.grad
            if grad:  # half of all hidden units are switched off and pass nothing on
                for sources, slopes in value.edges:
                    for source, slope in zip(sources, slopes):  # noqa: B905 - here is where the time goes
                        source.grad += grad * slope

    def _made_from(self) -> list[Value]:
        """This value and all it was made from, without the leaves, from young to old."""
        made, seen, read = [self] if self.edges else [], {self}, set()
        for value in made:  # grows while it is read
            for sources, _ in value.edges:
                if id(sources) not in read:  # values made together share their lists, so each is read once
                    read.add(id(sources))
                    for source in sources:
                        if source.edges and source not in seen:
                            seen.add(source)
                            made.append(source)
        made.sort(key=attrgetter("birth"), reverse=True)
        return made

    def __add__(self, other: Value | float) -> Value:
        if isinstance(other, Value):
            return Value(self.data + other.data, ((self, other), (1.0, 1.0)))
        return Value(self.data + other, ((self,), (1.0,)))

    def __mul__(self, other: Value | float) -> Value:
        if isinstance(other, Value):
            return Value(self.data * other.data, ((self, other), (other.data, self.data)))
        return Value(self.data * other, ((self,), (other,)))

    def __pow__(self, power: float) -> Value:
        return Value(self.data**power, ((self,), (power * self.data ** (power - 1),)))

    def __neg__(self) -> Value:
        return self * -1.0

    def __sub__(self, other: Value | float) -> Value:
        return self + -other

    def __truediv__(self, other: Value | float) -> Value:
        return self * other**-1.0

    def __rsub__(self, other: float) -> Value:
        return -self + other

    def __rtruediv__(self, other: float) -> Value:
        return self**-1.0 * other

    __radd__, __rmul__ = __add__, __mul__

    def exp(self) -> Value:
        y = math.exp(self.data)
        return Value(y, ((self,), (y,)))

    def log(self) -> Value:
        return Value(math.log(self.data), ((self,), (1.0 / self.data,)))

    def relu(self) -> Value:
        """max(x, 0); the slope at 0 is taken to be 0."""
        return Value(self.data, ((self,), (1.0,))) if self.data > 0 else Value(0.0, ((self,), (0.0,)))

    def squared_relu(self) -> Value:
        """max(x, 0)², with slope 2 max(x, 0)."""
        y = max(self.data, 0.0)
        return Value(y * y, ((self,), (2.0 * y,)))


Vector = list[Value]
Matrix = list[Vector]


def mean(values: Sequence[Value]) -> Value:
    """y = Σ v / n. Each slope is 1/n."""
    n = len(values)
    return Value(sum(_data(values)) / n, (values, [1.0 / n] * n))


def linear(weight: Matrix, xs: Matrix, scale: float = 1.0) -> Matrix:
    """y[t][o] = scale · Σ_i W[o][i] x[t][i], one node for each y. Shapes: W [d_out, d_in], x [pos, d_in].

    ∂y/∂W[o][i] = scale · x[t][i] and ∂y/∂x[t][i] = scale · W[o][i]: each side's slopes are the other side's numbers.
    """
    rows = [(row, [scale * w.data for w in row]) for row in weight]
    made = []
    for x in xs:
        numbers = _data(x)
        to_row = numbers if scale == 1.0 else [scale * number for number in numbers]
        made.append([Value(sum(map(mul, w, numbers)), (row, to_row), (x, w)) for row, w in rows])
    return made


def rms_norm(x: Vector, gain: Vector, eps: float) -> Vector:
    """y[i] = x[i] · r · gain[i] with r = 1/√m, m = mean(x²) + ε, the mean over the n entries of x.

    ∂r/∂x[i] = −½ m^(−3/2) · 2 x[i]/n = −r³ x[i]/n. A product's slope is the product of its other factors.
    """
    numbers = _data(x)
    r = 1.0 / math.sqrt(sum(map(mul, numbers, numbers)) / len(x) + eps)
    steepness = -r * r * r / len(x)
    root = Value(r, (x, [steepness * number for number in numbers]))
    return [
        Value(a * r * g.data, ((value, root, g), (r * g.data, a * g.data, a * r)))
        for value, a, g in zip(x, numbers, gain, strict=True)
    ]


def attend(scores: Vector, values: Matrix) -> Vector:
    """y[j] = Σ_t p[t] v[t][j] with p = softmax(s): the values' mean, weighted. Shapes: s [pos], v [pos, d_head].

    ∂y[j]/∂v[t][j] = p[t]. With ∂p[u]/∂s[t] = p[u] ([u = t] − p[t]),
    ∂y[j]/∂s[t] = Σ_u v[u][j] p[u] ([u = t] − p[t]) = p[t] (v[t][j] − y[j]): how far a value lies above the mean.
    """
    shares = softmax(_data(scores))
    made = []
    for column in zip(*values, strict=True):
        numbers = _data(column)
        y = sum(map(mul, shares, numbers))
        to_scores = [share * (number - y) for share, number in zip(shares, numbers, strict=True)]
        made.append(Value(y, (column, shares), (scores, to_scores)))
    return made


def cross_entropy(scores: Vector, target: int) -> Value:
    """y = −log softmax(s)[target] = log Σ_u exp(s[u]) − s[target], in nats.

    ∂y/∂s[t] = exp(s[t]) / Σ_u exp(s[u]) − [t = target] = softmax(s)[t] − [t = target].
    """
    numbers = _data(scores)
    best = max(numbers)  # taken out of the logarithm, so that no exponential overflows
    log_sum = best + math.log(sum(math.exp(number - best) for number in numbers))
    slopes = softmax(numbers)
    slopes[target] -= 1.0
    return Value(log_sum - numbers[target], (scores, slopes))


def softmax(numbers: Sequence[float]) -> list[float]:
    """exp(a[t]) / Σ_u exp(a[u])."""
    best = max(numbers)
    powers = [math.exp(number - best) for number in numbers]
    total = sum(powers)
    return [power / total for power in powers]


def _data(values: Sequence[Value]) -> list[float]:
    return [value.data for value in values]
