"""A mixture of experts: several feed-forwards, of which each token is read by a few."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from residuum.model.config import ModelConfig
from residuum.model.dropout import Dropout
from residuum.model.gradient import Saved, accumulate_product
from residuum.model.linear import Linear
from residuum.model.precision import at_least_float32, without_autocast


class Routing(NamedTuple):
    """Who reads what. A choice is one of the k experts of one token; they are numbered token · k + rank."""

    p: Float[Tensor, "tokens experts"]
    """Softmax of the router's logits."""
    chosen: Int[Tensor, "tokens k"]
    """The k experts of largest p, the largest first."""
    order: Int[Tensor, "choices"]
    """The choices sorted by expert, those of one expert in the order of the tokens."""
    sizes: list[int]
    """How many of them are each expert's."""


class MixtureOfExperts(nn.Module):
    """y = Σ_chosen w_e expert_e(x), the chosen being the k experts of largest p = softmax(x W_routerᵀ).

    w_e = p_e / Σ_chosen p, as in Mixtral; for k = 1, where that is 1 and would teach the router nothing, w_e = p_e, as
    in the Switch Transformer. No token is left out, however many choose one expert. An expert that none chose receives
    gradients of zero. The write is dropped from once, as any branch's is. Router and p are at least float32.

    With it comes a term of the loss that keeps the experts evenly used, `balance` · E Σ_e f_e P_e for E experts: f_e is
    the share of all choices that fell on e, a constant to the gradient, P_e the mean of p_e. Every token counts, also
    one that is padding or whose target does not. `Balance` collects it. Shapes: W_router [experts, d_model].
    Sources: Shazeer et al. 2017, https://arxiv.org/abs/1701.06538; Switch: Fedus et al. 2021,
    https://arxiv.org/abs/2101.03961; Mixtral: Jiang et al. 2024, https://arxiv.org/abs/2401.04088.
    """

    def __init__(self, config: ModelConfig, expert: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.k, self.balance = config.experts_per_token, config.balance
        self.router = Linear(config.d_model, config.n_experts, False, config.init_std)
        self.experts = nn.ModuleList(expert() for _ in range(config.n_experts))
        self.dropout = Dropout(config.dropout)
        self.asked: Balance | None = None
        self.imbalance: Tensor | None = None
        """E Σ_e f_e P_e of the last pass that `Balance` saw: 1 where all is even, E where one expert has everything."""
        self.shares: Tensor | None = None
        """f_e of the same pass."""

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        rows = x.flatten(0, -2)
        routing = self._route(rows)
        y, weights = torch.zeros_like(rows), self._weights(routing).flatten()
        for expert, token, choices in self._each(routing):
            written = expert(rows.index_select(0, token))
            y.index_add_(0, token, _scaled(written, weights[choices], y.dtype))
        return self.dropout(y.view(x.shape))

    def explicit_forward(self, x: Float[Tensor, "*rows d_model"]) -> tuple[Float[Tensor, "*rows d_model"], Saved]:
        """Keeps x, the routing, what each expert wrote, and what it kept, but not its rows: they are x's."""
        rows = x.flatten(0, -2)
        routing = self._route(rows)
        y, weights, of_experts = torch.zeros_like(rows), self._weights(routing).flatten(), []
        for expert, token, choices in self._each(routing):
            written, (_, *of_expert) = expert.explicit_forward(rows.index_select(0, token))
            y.index_add_(0, token, _scaled(written, weights[choices], y.dtype))
            of_experts.append((written, of_expert))
        y, dropped = self.dropout.explicit_forward(y.view(x.shape))
        return y, (x, routing, of_experts, dropped)

    def explicit_backward(self, dy: Float[Tensor, "*rows d_model"], saved: Saved) -> Float[Tensor, "*rows d_model"]:
        """The product rule on the weighted sum: an expert receives w_e dy, its weight dy · expert_e(x)."""
        x, routing, of_experts, dropped = saved
        rows, dy = x.flatten(0, -2), self.dropout.explicit_backward(dy, dropped).flatten(0, -2)
        dx, weights = torch.zeros_like(rows), self._weights(routing).flatten()
        dweights = torch.empty_like(weights)
        for (expert, token, choices), (written, of_expert) in zip(self._each(routing), of_experts, strict=True):
            dsum = dy.index_select(0, token)
            dweights[choices] = (dsum * written).sum(-1).to(weights.dtype)
            dwritten = _scaled(dsum, weights[choices], written.dtype)
            dx.index_add_(0, token, expert.explicit_backward(dwritten, (rows.index_select(0, token), *of_expert)))
        return (dx + self._route_backward(dweights.view(-1, self.k), rows, routing)).view(x.shape)

    def value_path(self) -> tuple[list[Linear], list[Linear]]:
        paths: list[Any] = [cast(Any, expert).value_path() for expert in self.experts]
        return [part for inner, _ in paths for part in inner], [part for _, last in paths for part in last]

    def _route(self, rows: Float[Tensor, "tokens d_model"]) -> Routing:
        with without_autocast(rows):
            p = F.softmax(F.linear(at_least_float32(rows), at_least_float32(self.router.weight)), -1)
        chosen = p.topk(self.k).indices
        every = chosen.flatten()
        # Without values nobody knows who chose what, so on the meta device all have the same share.
        counts = torch.bincount(every, minlength=len(self.experts)) if not every.is_meta else None
        share, more = divmod(len(every), len(self.experts))
        sizes = [share + (e < more) for e in range(len(self.experts))] if counts is None else counts.tolist()
        routing = Routing(p, chosen, every.argsort(stable=True), sizes)
        if self.asked is not None:
            self.shares = self._shares(routing)
            imbalance = len(self.experts) * (self.shares * p.mean(0)).sum()
            self.asked.terms[self], self.imbalance = imbalance, imbalance.detach()
        return routing

    def _route_backward(
        self, dweights: Float[Tensor, "tokens k"], rows: Float[Tensor, "tokens d_model"], routing: Routing
    ) -> Float[Tensor, "tokens d_model"]:
        """Through the share among the chosen, the balance term if it is asked for, the softmax, and W_router."""
        p, chosen = routing.p, routing.chosen
        if self.k > 1:  # w = p / s
            s, weights = p.gather(-1, chosen).sum(-1, keepdim=True), self._weights(routing)
            dweights = (dweights - (weights * dweights).sum(-1, keepdim=True)) / s
        dp = torch.zeros_like(p).scatter(-1, chosen, dweights)
        if self.asked is not None:
            dp += self.asked.scale * self.balance * len(self.experts) / len(p) * self._shares(routing)
        dlogits = p * (dp - (p * dp).sum(-1, keepdim=True))
        with without_autocast(rows):
            accumulate_product(self.router.weight, dlogits, at_least_float32(rows))
            return (dlogits @ at_least_float32(self.router.weight)).to(rows.dtype)

    def _each(self, routing: Routing) -> Iterator[tuple[Any, Int[Tensor, "own"], Int[Tensor, "own"]]]:
        """Every expert, whose tokens it reads, and which choices made them its own; there may be none.

        No token is one expert's twice, so that adding to `token`s, expert by expert, is deterministic on a GPU, too.
        """
        for expert, choices in zip(self.experts, routing.order.split(routing.sizes), strict=True):
            yield expert, choices // self.k, choices

    def _weights(self, routing: Routing) -> Float[Tensor, "tokens k"]:
        p = routing.p.gather(-1, routing.chosen)
        return p / p.sum(-1, keepdim=True) if self.k > 1 else p

    def _shares(self, routing: Routing) -> Float[Tensor, "experts"]:
        """f: each expert's share of all choices."""
        return routing.p.new_tensor(routing.sizes) / len(routing.order)


class Balance:
    """While open, the `parts` that are mixtures of experts note their balance term; `added_to` a loss it is complete.

    `scale` is what the hand-derived backward multiplies the loss's gradient by. A forward that is run a second time,
    for its backward, notes the same again.
    """

    def __init__(self, parts: Iterable[Any], scale: float = 1.0) -> None:
        self.mixtures = [part for part in parts if isinstance(part, MixtureOfExperts)]
        self.scale = scale
        self.terms: dict[MixtureOfExperts, Tensor] = {}

    def __enter__(self) -> Balance:
        for mixture in self.mixtures:
            mixture.asked = self
        return self

    def __exit__(self, *_: object) -> None:
        for mixture in self.mixtures:
            mixture.asked = None

    def added_to(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The loss + Σ `balance` · E Σ_e f_e P_e over the mixtures."""
        for mixture, imbalance in self.terms.items():
            loss = loss + mixture.balance * imbalance
        return loss


def _scaled(rows: Float[Tensor, "own d_model"], weights: Float[Tensor, "own"], dtype: torch.dtype) -> Tensor:
    return (rows * weights.unsqueeze(-1)).to(dtype)
