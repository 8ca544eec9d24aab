"""A step of the scalar GPT against the textbook form, where each multiplication and each addition is a node.

Bound: at most a third of the time, the collector paused for both. Compared: forward, backward and AdamW on one word of
6 letters, at d_model 16, 4 heads, 1 layer, context 16, 27 tokens; loss and gradients must be the same.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time

import harness
from residuum.engine.scalar import GPT, AdamW, Shape
from residuum.engine.scalar.collector import collector_paused

SHAPE = Shape(vocab_size=27, context=16, d_model=16, n_layers=1, n_heads=4, init_std=0.1)
WORD = [0, 15, 12, 9, 22, 9, 1, 0]
ROUNDS = 15


class Node:
    """What everybody writes first: two operands at most, and the derivative by each."""

    __slots__ = ("data", "grad", "operands", "slopes")

    def __init__(self, data, operands=(), slopes=()):
        self.data, self.grad, self.operands, self.slopes = data, 0.0, operands, slopes

    def __add__(self, other):
        other = other if isinstance(other, Node) else Node(other)
        return Node(self.data + other.data, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        other = other if isinstance(other, Node) else Node(other)
        return Node(self.data * other.data, (self, other), (other.data, self.data))

    def power(self, exponent):
        return Node(self.data**exponent, (self,), (exponent * self.data ** (exponent - 1),))

    def exp(self):
        return Node(math.exp(self.data), (self,), (math.exp(self.data),))

    def log(self):
        return Node(math.log(self.data), (self,), (1 / self.data,))

    def relu(self):
        return Node(max(self.data, 0.0), (self,), (float(self.data > 0),))

    def backward(self):
        order, seen, waiting = [], set(), [(self, False)]
        while waiting:
            node, is_ready = waiting.pop()
            if is_ready:
                order.append(node)
            elif node not in seen:
                seen.add(node)
                waiting.append((node, True))
                waiting.extend((operand, False) for operand in node.operands if operand not in seen)
        self.grad = 1.0
        for node in reversed(order):
            for operand, slope in zip(node.operands, node.slopes, strict=True):
                operand.grad += slope * node.grad


class TextbookGPT:
    """The formulas of GPT, from `Node`'s operators alone."""

    def __init__(self, parameters):
        self.parameters = {
            name: [[Node(v.data) for v in row] if isinstance(row, list) else Node(row.data) for row in rows]
            for name, rows in parameters.items()
        }

    def loss(self, tokens, targets):
        weight = self.parameters
        stream = self.add([weight["embedding.weight"][t] for t in tokens], weight["positions.weight"][: len(tokens)])
        stream = self.add(stream, self.attention(self.norm("blocks.0.attn_residual.norm", stream)))
        inner = self.linear("blocks.0.ff.up", self.norm("blocks.0.ff_residual.norm", stream))
        stream = self.add(stream, self.linear("blocks.0.ff.down", [[h.relu() for h in row] for row in inner]))
        rows = self.linear("embedding", self.norm("final_norm", stream))
        losses = [self.softmax(scores)[t].log() * -1.0 for scores, t in zip(rows, targets, strict=True)]
        return self.total(losses) * (1 / len(losses))

    def attention(self, x):
        q, k, v = (self.linear(f"blocks.0.attn.{part}", x) for part in "qkv")
        width = SHAPE.d_head
        joined = [[] for _ in x]
        for start in range(0, SHAPE.d_model, width):
            here = slice(start, start + width)
            for place, query in enumerate(q):
                past = range(place + 1)
                shares = self.softmax([self.dot(query[here], k[t][here]) * (1 / math.sqrt(width)) for t in past])
                joined[place] += [
                    self.dot(shares, [v[t][entry] for t in past]) for entry in range(start, start + width)
                ]
        return self.linear("blocks.0.attn.out", joined)

    def linear(self, name, x):
        return [[self.dot(row, vector) for row in self.parameters[f"{name}.weight"]] for vector in x]

    def norm(self, name, x):
        gains, out = self.parameters[f"{name}.gain"], []
        for vector in x:
            root = (self.dot(vector, vector) * (1 / len(vector)) + SHAPE.norm_eps).power(-0.5)
            out.append([entry * root * gain for entry, gain in zip(vector, gains, strict=True)])
        return out

    def softmax(self, scores):
        best = max(score.data for score in scores)
        powers = [(score + -best).exp() for score in scores]
        inverse = self.total(powers).power(-1)
        return [power * inverse for power in powers]

    def dot(self, a, b):
        return self.total([p * q for p, q in zip(a, b, strict=True)])

    def total(self, nodes):
        first, *others = nodes
        for node in others:
            first = first + node
        return first

    def add(self, a, b):
        return [[p + q for p, q in zip(left, right, strict=True)] for left, right in zip(a, b, strict=True)]


def check_equal(ours, textbook):
    mine, theirs = ours.loss([WORD[:-1]], [WORD[1:]]), textbook.loss(WORD[:-1], WORD[1:])
    mine.backward()
    theirs.backward()
    assert math.isclose(mine.data, theirs.data, rel_tol=1e-12)
    pairs = list(zip(AdamW(ours.parameters).weights, AdamW(textbook.parameters).weights, strict=True))
    assert len(pairs) == 3808
    assert all(math.isclose(a.grad, b.grad, rel_tol=1e-9, abs_tol=1e-15) for a, b in pairs)
    assert sum(a.grad != 0 for a, _ in pairs) > 2000
    for a, b in pairs:
        a.grad = b.grad = 0.0


def parts(gpt, optimizer):
    """Median seconds of each part of a step of ours."""
    taken = {"forward": [], "backward": [], "adam": []}
    for _ in range(ROUNDS * 5):
        with collector_paused():
            clock = [time.perf_counter()]
            loss = gpt.loss([WORD[:-1]], [WORD[1:]])
            clock.append(time.perf_counter())
            loss.backward()
            clock.append(time.perf_counter())
            optimizer.step(1e-3)
            clock.append(time.perf_counter())
            del loss
        for name, (start, end) in zip(taken, itertools.pairwise(clock), strict=True):
            taken[name].append(end - start)
    return {f"{name}_seconds": statistics.median(times) for name, times in taken.items()}


def batches(gpt, optimizer):
    """Seconds of a step on full batches of 16 tokens a row."""
    seconds = {}
    row = [place * 7 % 27 for place in range(17)]
    for size in (4, 8, 16):
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            with collector_paused():
                gpt.loss([row[:-1]] * size, [row[1:]] * size).backward()
            optimizer.step(1e-3)
            taken.append(time.perf_counter() - start)
        seconds[f"batch_{size}_seconds"] = statistics.median(taken)
    return seconds


def main() -> None:
    ours = GPT(SHAPE)
    textbook = TextbookGPT(ours.parameters)
    check_equal(ours, textbook)
    our_adam, textbook_adam = AdamW(ours.parameters), AdamW(textbook.parameters)

    @collector_paused()
    def step() -> None:
        ours.loss([WORD[:-1]], [WORD[1:]]).backward()
        our_adam.step(1e-3)

    def textbook_step() -> None:
        textbook.loss(WORD[:-1], WORD[1:]).backward()
        textbook_adam.step(1e-3)

    figures = harness.ratio(step, collector_paused()(textbook_step), ROUNDS)
    collected = harness.ratio(step, textbook_step, ROUNDS)
    figures["ratio_where_the_textbook_form_is_collected"] = collected["ratio"]
    harness.save("scalar", {"bound": 1 / 3, **figures, **parts(ours, our_adam), **batches(ours, our_adam)})


if __name__ == "__main__":
    main()
