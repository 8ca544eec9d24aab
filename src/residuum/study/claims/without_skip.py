"""What a network is without residual connections, and with norms all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from residuum.model.config import ModelConfig
from residuum.model.norm import make_norm
from residuum.model.residual import Branch, Residual
from residuum.model.residual.xavier import xavier

if TYPE_CHECKING:
    from residuum.model import Transformer


class WithoutSkip(Residual):
    """y = f(norm(x)): Pre-LN without its skip. The connection `none` has no norm either.

    It is chosen by its path alone: what is registered is offered to everybody.
    """

    name = "without-skip"

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.norm = make_norm(config)

    def forward(self, state: Tensor, branch: Branch, *args: Any) -> Tensor:
        return branch(self.norm(state), *args)


class XavierWithoutSkip(WithoutSkip):
    """GPT-2's last matrices are small because writes add up, and here nothing does."""

    name = "xavier-without-skip"

    @classmethod
    def initialise(cls, model: Transformer) -> None:
        xavier(model)


NORMED = f"{__name__}:WithoutSkip"
NORMED_XAVIER = f"{__name__}:XavierWithoutSkip"
