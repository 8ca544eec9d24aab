"""Audits to report on: healthy, faulty, structure alone. Findings of other rules are put aside."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import residuum
from residuum.audit import Audit, judge
from residuum.audit.finding import Evidence

D = 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(D), nn.Linear(D, D)
        self.norm2, self.mlp = nn.LayerNorm(D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x)).tanh()
        return x + self.mlp(self.norm2(x)).tanh()


class Deep(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(D, D)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.final = nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.final(x)


class Detached(Block):
    """An error with a place: the skip carries no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach() + self.attn(self.norm(x)).tanh()
        return x + self.mlp(self.norm2(x)).tanh()


def faulty(blocks: int = 3) -> Deep:
    """RS103 at the middle block, and RS203 for two parameters that nothing reads."""
    model = Deep(blocks)
    model.blocks[blocks // 2] = Detached()
    model.unused = nn.Linear(D, D)
    return model


def audit_of(model: nn.Module) -> Audit:
    torch.manual_seed(0)
    return residuum.audit(model, torch.randn(2, 3, D), loss=lambda y: y.square().sum())


def structure_of(model: nn.Module, **kwargs) -> Audit:
    graph = residuum.trace(model.to("meta"), torch.empty(2, 3, D, device="meta"))
    return judge(Evidence(graph), "a config", **kwargs)


@pytest.fixture(scope="session")
def healthy() -> Audit:
    return replace(audit_of(Deep()), findings=[], skipped={})


@pytest.fixture(scope="session")
def faults() -> Audit:
    audit = audit_of(faulty())
    return replace(audit, findings=[f for f in audit.findings if f.code in ("RS103", "RS203")], skipped={})


@pytest.fixture(scope="session")
def structure() -> Audit:
    return replace(structure_of(Deep(), notes=["inputs were made: tokens | 2 × 3"]), findings=[])


@pytest.fixture(scope="session")
def deep() -> Audit:
    return replace(audit_of(Deep(100)), findings=[], skipped={})


@pytest.fixture(scope="session")
def deep_structure() -> Audit:
    return replace(structure_of(Deep(500)), findings=[])
