"""The token embedding."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from residuum.model.gradient import zeros_grad


class Embedding(nn.Embedding):
    """y = W[token], with W ~ N(0, std²) at the start. Shapes: W [vocab, d_model], y [batch, pos, d_model]."""

    weight: nn.Parameter

    def __init__(self, vocab_size: int, d_model: int, std: float) -> None:
        super().__init__(vocab_size, d_model)
        nn.init.normal_(self.weight, std=std)

    def explicit_forward(self, tokens: Int[Tensor, "batch pos"]) -> tuple[Float[Tensor, "batch pos d_model"], Tensor]:
        """Keeps the tokens."""
        return self.forward(tokens), tokens

    def explicit_backward(self, dy: Float[Tensor, "batch pos d_model"], tokens: Tensor) -> None:
        """dW[v] = Σ dy over the places that hold token v. A tied head adds its own part to the same `.grad`."""
        if not self.weight.requires_grad:
            return
        grad = zeros_grad(self.weight)
        grad.index_add_(0, tokens.flatten(), dy.flatten(0, -2).to(grad.dtype))
