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
        self.of_write = Linear(width, 3 * width, bias=False, std=std)
        """W_r, W_z and W_h, one below the other: one product."""
        self.of_state = Linear(width, 2 * width, bias=False, std=std)
        """U_r and U_z."""
        self.of_reset = Linear(width, width, bias=False, std=std)
        """U_h."""
        self.bias = nn.Parameter(torch.full((width,), 2.0))

    def forward(self, x: Stream, branch: Branch, *args: Any) -> Stream:
        reset, update, new = self.of_write(branch(self.norm(x), *args)).chunk(3, -1)
        reset_too, update_too = self.of_state(x).chunk(2, -1)
        reset = torch.sigmoid(reset + reset_too)
        update = torch.sigmoid(update + update_too - self.bias)
        return torch.addcmul(x, update, torch.tanh(new + self.of_reset(reset * x)) - x)

    def explicit_forward(self, x: Stream, branch: Branch, *args: Any) -> tuple[Stream, Saved]:
        """Keeps the write, and r, z and h side by side."""
        normed, of_norm = self.norm.explicit_forward(x)
        write, (_, *of_branch) = branch.explicit_forward(normed, *args)
        units, _ = self.of_write.explicit_forward(write)
        width = x.shape[-1]
        reset, update, new = units[..., :width], units[..., width : 2 * width], units[..., 2 * width :]
        gates = units[..., : 2 * width]
        gates += self.of_state.explicit_forward(x)[0]
        update -= self.bias
        gates.sigmoid_()
        new += self.of_reset.explicit_forward(reset * x)[0]
        new.tanh_()
        return torch.addcmul(x, update, new - x), (branch, of_norm, of_branch, x, write, units)

    def explicit_backward(self, dy: Stream, saved: Saved, parts: Receiver | None = None) -> Stream:
        """From the end to the start: through z and h, through r, and what each product hands back to w and to x."""
        branch, of_norm, of_branch, x, write, units = saved
        width = x.shape[-1]
        reset, update, new = units[..., :width], units[..., width : 2 * width], units[..., 2 * width :]
        moved = dy * update
        dnew = moved.addcmul(moved * new, new, value=-1)
        dread = self.of_reset.explicit_backward(dnew, reset * x)
        dreset = sigmoid_backward(dread * x, reset)
        dupdate = sigmoid_backward((new - x).mul_(dy), update)
        accumulate(self.bias, -dupdate.flatten(0, -2).sum(0))
        dunits = torch.cat((dreset, dupdate, dnew), -1)
        dx = self.of_state.explicit_backward(dunits[..., : 2 * width], x)
        dx.addcmul_(dread, reset)
        dwrite = self.of_write.explicit_backward(dunits, write)
        dnormed = branch.explicit_backward(dwrite, (self.norm.explicit_again(of_norm), *of_branch))
        dx += self.norm.explicit_backward(dnormed, of_norm)
        return joined(dy - moved, dx, parts)
