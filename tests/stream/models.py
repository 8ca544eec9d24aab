"""Models that nobody's adapter knows, each with what a person reading it would say of its connections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

D = 6


class Mlp(nn.Module):
    def __init__(self, d: int = D) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


class RMS(nn.Module):
    """A normalisation written out by hand."""

    def __init__(self, d: int = D) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float() if x.dtype != torch.float64 else x
        return self.gain * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Stack(nn.Module):
    """Embeds by a linear map, runs its layers, and reads out."""

    final = True

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, D)
        self.norms = nn.ModuleList(RMS() for _ in range(3))
        self.mlps = nn.ModuleList(Mlp() for _ in range(3))
        self.last = nn.LayerNorm(D)
        self.out = nn.Linear(D, 2)

    def layer(self, i: int, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i in range(3):
            x = self.layer(i, x)
        return self.out(self.last(x) if self.final else x)


class PreNorm(Stack):
    expected = ("identity", "pre")

    def layer(self, i: int, x: Tensor) -> Tensor:
        return x + self.mlps[i](self.norms[i](x))


class PostNorm(Stack):
    expected = ("identity", "post")
    final = False

    def layer(self, i: int, x: Tensor) -> Tensor:
        return self.norms[i](self.mlps[i](x) + x)


class Sandwich(Stack):
    expected = ("identity", "sandwich")

    def __init__(self) -> None:
        super().__init__()
        self.after = nn.ModuleList(nn.LayerNorm(D) for _ in range(3))

    def layer(self, i: int, x: Tensor) -> Tensor:
        return x + self.after[i](self.mlps[i](self.norms[i](x)))


class NormAtBranchEnd(Stack):
    """OLMo-2's order."""

    expected = ("identity", "post")

    def layer(self, i: int, x: Tensor) -> Tensor:
        return x + self.norms[i](self.mlps[i](x))


class Unnormalised(Stack):
    expected = ("identity", "none")
    final = False

    def layer(self, i: int, x: Tensor) -> Tensor:
        return x + self.mlps[i](x)


class InPlace(Stack):
    expected = ("identity", "pre")

    def layer(self, i: int, x: Tensor) -> Tensor:
        write = self.mlps[i](self.norms[i](x))
        write += x
        return write


class TorchAdd(Stack):
    expected = ("identity", "pre")

    def layer(self, i: int, x: Tensor) -> Tensor:
        return torch.add(x, self.mlps[i](self.norms[i](x)))


class Scaled(Stack):
    expected = ("scaled", "pre")

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((D,), 0.3))

    def layer(self, i: int, x: Tensor) -> Tensor:
        return x + self.scale * self.mlps[i](self.norms[i](x))


class ScaledSkip(Stack):
    expected = ("scaled", "post")
    final = False

    def layer(self, i: int, x: Tensor) -> Tensor:
        return self.norms[i](1.7 * x + self.mlps[i](x))


class Highway(Stack):
    expected = ("gated", "none")
    final = False

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(D, D) for _ in range(3))

    def layer(self, i: int, x: Tensor) -> Tensor:
        t = torch.sigmoid(self.gates[i](x))
        return t * self.mlps[i](x) + (1 - t) * x


class DroppedSkip(Stack):
    expected = ("dropout", "pre")

    def layer(self, i: int, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.1) + self.mlps[i](self.norms[i](x))


class TransposedWeight(Stack):
    """Weights reached through a computation: `weight.T`, and rounded on the way."""

    expected = ("identity", "pre")

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(D, D) for _ in range(3))

    def layer(self, i: int, x: Tensor) -> Tensor:
        w = self.weights[i]
        ternary = w + (w.sign() - w).detach()
        return x + torch.relu(self.norms[i](x) @ ternary.T) @ self.weights[i]


class Helper(Stack):
    """The sum stands in a function of its own."""

    expected = ("identity", "pre")

    def layer(self, i: int, x: Tensor) -> Tensor:
        return join(self.mlps[i](self.norms[i](x)), x)


def join(write: Tensor, skip: Tensor) -> Tensor:
    return skip + write  # the line that is reported


class CastSkip(Stack):
    """The stream is kept in a wider type than the branch computes in."""

    expected = ("identity", "pre")

    def layer(self, i: int, x: Tensor) -> Tensor:
        return x.double() + self.mlps[i](self.norms[i](x).to(self.out.weight.dtype)).double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i in range(3):
            x = self.layer(i, x)
        return self.out(self.last(x.to(self.out.weight.dtype)))


class HandLayerNorm(Stack):
    """Post-norm whose norm is written out: the mean is taken off before the variance is divided by."""

    expected = ("identity", "post")
    final = False

    def layer(self, i: int, x: Tensor) -> Tensor:
        y = x + self.mlps[i](x)
        y = y - y.mean(-1, keepdim=True)
        return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * self.norms[i].gain


class GainFirst(Stack):
    """The gain is multiplied before the statistic."""

    expected = ("identity", "pre")

    def layer(self, i: int, x: Tensor) -> Tensor:
        normed = self.norms[i].gain * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x + self.mlps[i](normed)


class Lerp(Stack):
    """A highway in one function: x + t (f − x)."""

    expected = ("gated", "pre")

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(D, D) for _ in range(3))

    def layer(self, i: int, x: Tensor) -> Tensor:
        y = self.norms[i](x)
        return torch.lerp(x, self.mlps[i](y), torch.sigmoid(self.gates[i](y)))


class Keywords(Stack):
    expected = ("identity", "pre")

    def layer(self, i: int, x: Tensor) -> Tensor:
        return torch.add(input=x, other=self.mlps[i](self.norms[i](x)))


CONNECTED = [
    PreNorm, PostNorm, Sandwich, NormAtBranchEnd, Unnormalised, InPlace, TorchAdd, Scaled, ScaledSkip, Highway,
    DroppedSkip, TransposedWeight, Helper, CastSkip, HandLayerNorm, GainFirst, Lerp, Keywords,
]  # fmt: skip


class BasicBlock(nn.Module):
    """ResNet's: in place, and projected where the width changes."""

    def __init__(self, d_in: int, d_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(d_in, d_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(d_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(d_out, d_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(d_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or d_in != d_out:
            self.downsample = nn.Sequential(nn.Conv2d(d_in, d_out, 1, stride, bias=False), nn.BatchNorm2d(d_out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    kinds = ("identity", "projected", "identity", "projected")

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(BasicBlock(4, 4, 1), BasicBlock(4, 8, 2), BasicBlock(8, 8, 1), BasicBlock(8, 10, 1))
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class NoConnections(nn.Module):
    """Sums that are none: bias, position, mask, rotary, low-rank adapter, shared expert, polynomial, gate."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, D), nn.Embedding(9, D)
        self.bias = nn.Parameter(torch.zeros(D))
        self.q, self.k, self.v = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.base, self.low, self.high = nn.Linear(D, D), nn.Linear(D, 2), nn.Linear(2, D)
        self.expert, self.shared = Mlp(), Mlp()
        self.gate, self.up = nn.Linear(D, D), nn.Linear(D, D)
        self.norm = RMS()

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        x = self.tokens(tokens) + self.places(places)
        x = self.norm(x)
        cos, sin = torch.cos(places)[:, None], torch.sin(places)[:, None]
        q, k, v = self.q(x), self.k(x), self.v(x)
        q = q * cos + torch.cat((-q[..., 3:], q[..., :3]), -1) * sin
        scores = q @ k.mT + torch.full((tokens.shape[1],) * 2, -1e9).triu(1)
        x = torch.softmax(scores, -1) @ v + self.bias
        x = self.base(x) + self.high(self.low(x))
        x = self.expert(x) + self.shared(x)
        x = 0.5 * x * (1 + torch.tanh(x + 0.044715 * x.pow(3)))
        error = x - self.expert(x)  # what a reconstruction misses is compared, not carried
        x = x * error.square().mean()
        return torch.sigmoid(self.gate(x)) * self.up(x)
