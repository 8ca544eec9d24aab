"""A training step of model.Transformer against a bare GPT of the same shape on the same kernels.

Bound: at most 1.02 times. Compared: forward, loss, backward and AdamW at d_model 384, 6 layers, 4 × 256 tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import harness
from residuum.model import ModelConfig, Transformer

VOCAB, CONTEXT, WIDTH, LAYERS, HEADS, BATCH, ROUNDS = 1024, 256, 384, 6, 6, 4, 40


class BareBlock(nn.Module):
    """Everything in one forward, q, k and v from one matrix: the least that a GPT block can be."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class BareGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(BareBlock() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy((self.norm(x) @ self.tokens.weight.T).flatten(0, 1), targets.flatten())


def main() -> None:
    torch.manual_seed(0)
    ours = Transformer(ModelConfig(vocab_size=VOCAB, context=CONTEXT, d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS))
    bare = BareGPT()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in bare.parameters())
    tokens = torch.randint(VOCAB, (BATCH, CONTEXT))

    def step_of(model: Transformer | BareGPT):
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)

        def step() -> None:
            optimizer.zero_grad()
            model.loss(tokens, tokens).backward()
            optimizer.step()

        return step

    figures = harness.ratio(step_of(ours), step_of(bare), ROUNDS)
    harness.save("training_step", {"bound": 1.02, **figures})


if __name__ == "__main__":
    main()
