"""GRU: the stream is the state of a gated recurrent unit, and each write its next input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved, accumulate
from residuum.model.linear import Linear
from residuum.model.norm import make_norm
from residuum.model.residual.base import Branch, Receiver, Residual, Stream, joined, register
from residuum.model.residual.gated import sigmoid_backward


@register("gru")
class GRU(Residual):
    """y = (1 − z) ⊙ x + z ⊙ tanh(W_h w + U_h (r ⊙ x)), r = σ(W_r w + U_r x), z = σ(W_z w + U_z x − b), w = f(norm(x)).

    Back: (1 − z) ⊙ g is the identity part; all that passes a gate or w is the branch part. b = 2 at the start: each
    connection keeps 0.88 of the state. The matrices start at N(0, 1/d_model), which change no vector's size. The
    paper's ReLU on w is left away, as tanh bends already. Shapes: W and U [d_model, d_model], b [d_model].

    Source: Parisotto et al. 2019, https://arxiv.org/abs/1910.06764.
    """

    use = "For reinforcement learning, where it was steadier than pre; twice the products of a pre-norm model."

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        width, std = config.d_model, config.d_model**-0.5
        self.norm = make_norm(config)
        self.gates = Linear(2 * width, 2 * width, bias=False, std=std)
        """W_r and U_r side by side, and below them W_z and U_z: four products in one."""
        self.new = Linear(2 * width, width, bias=False, std=std)
        """W_h and U_h side by side."""
        self.bias = nn.Parameter(torch.full((width,), 2.0))

    def forward(self, x: Stream, branch: Branch, *args: Any) -> Stream:
        write = branch(self.norm(x), *args)
        reset, update = self.gates(torch.cat((write, x), -1)).chunk(2, -1)
        new = torch.tanh(self.new(torch.cat((write, torch.sigmoid(reset) * x), -1)))
        update = torch.sigmoid(update - self.bias).to(x.dtype)  # as lerp wants it, and autocast leaves it not
        return torch.lerp(x, new.to(x.dtype), update)

    def explicit_forward(self, x: Stream, branch: Branch, *args: Any) -> tuple[Stream, Saved]:
        """Keeps x, the write, r and z side by side, and what is new."""
        normed, of_norm = self.norm.explicit_forward(x)
        write, (_, *of_branch) = branch.explicit_forward(normed, *args)
        gates, _ = self.gates.explicit_forward(torch.cat((write, x), -1))
        width = x.shape[-1]
        gates[..., width:] -= self.bias
        reset, update = gates.sigmoid_()[..., :width], gates[..., width:]
        new = self.new.explicit_forward(torch.cat((write, reset * x), -1))[0].tanh_()
        return torch.addcmul(x, update, new - x), (branch, of_norm, of_branch, x, write, gates, new)

    def explicit_backward(self, dy: Stream, saved: Saved, parts: Receiver | None = None) -> Stream:
        """From the end to the start: through z and tanh, through r, and what each product hands back to w and to x."""
        branch, of_norm, of_branch, x, write, gates, new = saved
        width = x.shape[-1]
        reset, update = gates[..., :width], gates[..., width:]
        moved = dy * update
        dnew = moved.addcmul(moved * new, new, value=-1)
        dread = self.new.explicit_backward(dnew, torch.cat((write, reset * x), -1))
        dreset = sigmoid_backward(dread[..., width:] * x, reset)
        dupdate = sigmoid_backward((new - x).mul_(dy), update)
        accumulate(self.bias, -dupdate.flatten(0, -2).sum(0))
        dboth = self.gates.explicit_backward(torch.cat((dreset, dupdate), -1), torch.cat((write, x), -1))
        dwrite = dboth[..., :width] + dread[..., :width]
        dx = torch.addcmul(dboth[..., width:], dread[..., width:], reset)
        dnormed = branch.explicit_backward(dwrite, (self.norm.explicit_again(of_norm), *of_branch))
        dx += self.norm.explicit_backward(dnormed, of_norm)
        return joined(dy - moved, dx, parts)
