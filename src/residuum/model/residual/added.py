"""What pre-norm connections have in common that do something to the write before it is added."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residuum.model.gradient import Saved
from residuum.model.residual.base import Branch, Receiver, Stream, joined
from residuum.model.residual.pre import Pre


class Added(Pre):
    """y = add(x, f(norm(x))): a subclass says what its addition is, and what comes back of it to the write.

    The addition has slope 1 along x, so dL/dx = g + (J_w J_f J_norm)ᵀ g, with J_w the slope along the write.
    """

    def add(self, x: Stream, write: Tensor) -> Stream:
        raise NotImplementedError

    def explicit_add(self, x: Stream, write: Tensor) -> tuple[Stream, Any]:
        """The same, and what `explicit_add_backward` needs."""
        raise NotImplementedError

    def explicit_add_backward(self, dy: Stream, saved: Any) -> Tensor:
        """J_wᵀ dy, the gradient of the write."""
        raise NotImplementedError

    def forward(self, x: Stream, branch: Branch, *args: Any) -> Stream:
        return self.add(x, branch(self.norm(x), *args))

    def explicit_forward(self, x: Stream, branch: Branch, *args: Any) -> tuple[Stream, Saved]:
        normed, of_norm = self.norm.explicit_forward(x)
        write, (_, *of_branch) = branch.explicit_forward(normed, *args)
        y, of_add = self.explicit_add(x, write)
        return y, (branch, of_norm, of_branch, of_add)

    def explicit_backward(self, dy: Stream, saved: Saved, parts: Receiver | None = None) -> Stream:
        branch, of_norm, of_branch, of_add = saved
        dwrite = self.explicit_add_backward(dy, of_add)
        dnormed = branch.explicit_backward(dwrite, (self.norm.explicit_again(of_norm), *of_branch))
        return joined(dy, self.norm.explicit_backward(dnormed, of_norm), parts)


class Scaled(Added):
    """y = x + α f(norm(x)), α = `scale`, a number that nobody learns. Backward: dL/dx = g + α (J_f J_norm)ᵀ g."""

    scale: float

    def add(self, x: Stream, write: Tensor) -> Stream:
        return torch.add(x, write, alpha=self.scale)

    def explicit_add(self, x: Stream, write: Tensor) -> tuple[Stream, Any]:
        return self.add(x, write), None

    def explicit_add_backward(self, dy: Stream, saved: Any) -> Tensor:  # noqa: ARG002 - a subclass of Added may keep some
        return dy * self.scale
