"""A model of somebody else's, and the loss that it is trained by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

TOKENS = torch.randint(31, (5, 3, 7), generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(self.down(F.gelu(self.up(self.norm(x)))), 0.1, self.training)


class Net(nn.Module):
    """Dropout, BatchNorm's statistics and checkpointing: all that a careless measurement would disturb."""

    def __init__(self, checkpoint: bool = False) -> None:
        super().__init__()
        self.embedding, self.bn = nn.Embedding(31, 5), nn.BatchNorm1d(5)
        self.blocks = nn.ModuleList(Block(5) for _ in range(3))
        self.head = nn.Linear(5, 31)
        self.checkpoint = checkpoint

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.bn(self.embedding(tokens).mT).mT
        for block in self.blocks:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False) if self.checkpoint else block(x)
        return self.head(x)


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
