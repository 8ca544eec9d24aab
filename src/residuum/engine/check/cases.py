"""Every part and every residual connection, set up to be measured: small, with no power of two to hide behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residuum.engine.check.pair import Pair, of_module
from residuum.engine.check.rounding import held
from residuum.engine.check.stack import Stack
from residuum.engine.explicit import Explicit
from residuum.model import Block, ModelConfig, Transformer
from residuum.model import attend as dot_product
from residuum.model.attention import Attention
from residuum.model.cross_entropy import NOT_COUNTED, cross_entropy, explicit_cross_entropy
from residuum.model.dropout import Dropout
from residuum.model.embedding import Embedding
from residuum.model.experts import Balance, MixtureOfExperts
from residuum.model.feedforward import ACTIVATIONS, CHUNK, GATES, LEAST_ROWS, make_feedforward
from residuum.model.gradient import BLOCK
from residuum.model.linear import BitLinear, Linear
from residuum.model.norm import LayerNorm, RMSNorm
from residuum.model.positions import LearnedPositions, RotaryPositions, rotate, rotate_backward
from residuum.model.product import ONEDNN_FROM
from residuum.model.residual import REGISTRY

BATCH, POS, D_MODEL, VOCAB = 2, 5, 12, 31
WIDE = CHUNK // LEAST_ROWS + 1
"""So wide that a chunk has no more than `LEAST_ROWS` rows."""

Make = Callable[[torch.dtype], Pair]


@dataclass(frozen=True)
class Case:
    """What is measured under a name. `part` is the file that it stands in."""

    part: str
    name: str
    make: Make


def cases() -> list[Case]:
    """One for every way through a part, and one for every residual connection that is registered."""
    found: list[tuple[str, str, Make]] = [
        ("linear", "linear", lambda kind: of_module(ready(Linear(D_MODEL, 7, False, 0.3), kind), stream(kind))),
        ("linear", "linear-bias", lambda kind: of_module(ready(Linear(D_MODEL, 7, True, 0.3), kind), stream(kind))),
        (
            "linear",
            "tall",
            lambda kind: of_module(ready(Linear(3, 2 * BLOCK + 7, True, 0.3), kind), stream(kind, 2, 3)),
        ),
        ("linear", "large", _large_linear),
        *(("linear", name, _ternary(name == "sub-norm")) for name in ("ternary", "sub-norm")),
        ("norm", "layernorm", lambda kind: of_module(ready(LayerNorm(D_MODEL, 1e-5, False), kind), stream(kind))),
        ("norm", "layernorm-bias", lambda kind: of_module(ready(LayerNorm(D_MODEL, 1e-5, True), kind), stream(kind))),
        ("norm", "rmsnorm", lambda kind: of_module(ready(RMSNorm(D_MODEL, 1e-5), kind), stream(kind))),
        ("dropout", "dropout", lambda kind: of_module(Dropout(0.3), stream(kind))),
        *(("feedforward", name, _feedforward(activation=name)) for name in (*ACTIVATIONS, *GATES)),
        ("feedforward", "feedforward-bias-dropout", _feedforward(bias=True, dropout=0.3)),
        ("feedforward", "by-rows", _feedforward(LEAST_ROWS, d_ff=WIDE)),
        ("feedforward", "ternary-by-rows", _held(_feedforward(LEAST_ROWS, d_ff=WIDE, activation="swiglu", **TERNARY))),
        *(
            (part, f"ternary-{part}", _held(make(**TERNARY, activation="swiglu", bias=True)))
            for part, make in (("feedforward", _feedforward), ("attention", _attention), ("experts", _experts))
        ),
        ("experts", "experts-gelu", _experts()),
        ("experts", "experts-swiglu", _experts(activation="swiglu", bias=True, dropout=0.3, experts_per_token=3)),
        ("experts", "top-1", _experts(activation="swiglu", experts_per_token=1)),
        ("experts", "all-experts", _experts(n_experts=2)),
        ("experts", "balance", _clear(_balance(2))),
        ("experts", "balance-top-1", _clear(_balance(1))),
        ("attention", "multi-head", _attention()),
        ("attention", "grouped-query", _attention(n_kv_heads=2, bias=True)),
        ("attention", "encoder", _attention(causal=False)),
        ("attention", "padded", _attention(causal=False, mask=True)),
        ("attention", "padded-causal", _attention(mask=True, n_kv_heads=1)),
        ("attention", "rotary", _attention(positions="rotary")),
        ("attention", "attention-dropout", _attention(dropout=0.3, n_kv_heads=2)),
        *(("attend", name, _attend(name)) for name in ("naive", "fused", "by_autograd")),
        ("positions", "rotate", _rotate),
        ("positions", "learned", _learned),
        ("embedding", "embedding", _embedding),
        ("cross_entropy", "cross-entropy", _cross_entropy(POS)),
        ("cross_entropy", "chunked", _cross_entropy(LEAST_ROWS, WIDE)),
        ("head", "tied", _tied_head),
        *((name, name, _connection(name)) for name in REGISTRY),
        ("block", "decoder", _block(positions="rotary", n_kv_heads=2, norm="rmsnorm", activation="swiglu")),
        ("block", "encoder-block", _block(causal=False, residual="post", bias=True, dropout=0.3)),
        ("transformer", "gpt", _transformer(bias=True, dropout=0.3)),
        ("transformer", "llama", _transformer(**LLAMA)),
        ("transformer", "embedding-norm", _transformer(embedding_norm=True, residual="post", bias=True, dropout=0.3)),
        ("transformer", "block-inputs", _transformer("block-inputs", dropout=0.3, n_layers=3)),
        ("transformer", "experts", _clear(_transformer(**EXPERTS))),
        (
            "transformer",
            "experts-block-inputs",
            _clear(_transformer("block-inputs", dropout=0.3, n_layers=3, **EXPERTS)),
        ),
        ("transformer", "ternary", _held(_transformer(**TERNARY, activation="squared_relu", dropout=0.3))),
        ("transformer", "every-2", _transformer("every-2", dropout=0.3, n_layers=3)),
    ]
    return [Case(*case) for case in found]


LLAMA: dict[str, Any] = {
    "positions": "rotary", "n_kv_heads": 2, "norm": "rmsnorm", "activation": "swiglu", "head": "untied",
}  # fmt: skip

TERNARY: dict[str, Any] = {"linear": "ternary", "positions": "rotary", "norm": "rmsnorm", "n_kv_heads": 3}

EXPERTS: dict[str, Any] = {"n_experts": 4, "balance": 0.5}

CLEAR = 0.05
"""Least distance, in logits of a router, between the last expert chosen and the first that is not: where a choice
changes, y jumps, and has no slope. `check` moves a logit by some thousandths."""


def config(**values: Any) -> ModelConfig:
    """Weights large enough that no gradient is negligible; without norms, not so large that the stream explodes."""
    std = 0.1 if values.get("residual") in ("fixup", "tfixup") else 0.3
    small = {"vocab_size": VOCAB, "context": 9, "d_model": D_MODEL, "n_heads": 6, "n_layers": 2, "init_std": std}
    return ModelConfig(**{**small, **values})


def ready(module: Any, kind: torch.dtype) -> Any:
    """In type `kind`, with gains that are not all 1, and nothing that is 0."""
    module = module.to(kind)
    for parameter in module.parameters():
        if parameter.ndim < 2:
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return module


def stream(kind: torch.dtype, *shape: int) -> Tensor:
    """Random numbers where a state would be."""
    return torch.randn(shape or (BATCH, POS, D_MODEL), dtype=kind)


def tokens(length: int = POS) -> tuple[Tensor, Tensor]:
    """A batch of tokens and targets, one of which does not count."""
    read, wanted = torch.randint(VOCAB, (2, BATCH, length))
    wanted[0, 1] = NOT_COUNTED
    return read, wanted


def _large_linear(kind: torch.dtype) -> Pair:
    """So large that in float32 another library computes its products, where there is one."""
    rows = ONEDNN_FROM // 128**2
    return of_module(ready(Linear(128, 128, False, 0.1), kind), stream(kind, rows, 128))


def _ternary(norm: bool) -> Make:
    def make(kind: torch.dtype) -> Pair:
        part = BitLinear(D_MODEL, 7, True, 0.3, RMSNorm(D_MODEL, 1e-5) if norm else None)
        return of_module(ready(part, kind), stream(kind))

    return _held(make)


def _held(make: Make) -> Make:
    return lambda kind: held(make(kind))


def _feedforward(length: int = POS, **values: Any) -> Make:
    return lambda kind: of_module(ready(make_feedforward(config(**values)), kind), stream(kind, BATCH, length, D_MODEL))


def _experts(**values: Any) -> Make:
    chosen = config(**{**EXPERTS, **values})
    return _clear(lambda kind: of_module(ready(make_feedforward(chosen), kind), stream(kind)))


def _balance(experts_per_token: int) -> Make:
    """The balance term alone: nothing of y is asked for."""

    def make(kind: torch.dtype) -> Pair:
        part = ready(make_feedforward(config(**EXPERTS, experts_per_token=experts_per_token)), kind)

        def forward(x: Tensor) -> Tensor:
            with Balance([part]) as balance:
                y = part(x)
            return balance.added_to(0 * y.sum())  # so that autograd finds its way to every parameter

        def explicit(dy: Tensor, x: Tensor) -> tuple[Tensor, tuple[Tensor]]:
            with Balance([part], dy.item()) as balance:
                y, saved = part.explicit_forward(x)
                dx = part.explicit_backward(torch.zeros_like(y), saved)
            return balance.added_to(torch.zeros((), dtype=kind)), (dx,)

        return Pair(part, {"x": stream(kind)}, forward, explicit)

    return make


def _clear(make: Make) -> Make:
    """Drawn again until no choice of experts is near another."""

    def again(kind: torch.dtype) -> Pair:
        pair = make(kind)
        while nearest_tie(pair) < CLEAR:
            pair = make(kind)
        return pair

    return again


@torch.no_grad()
def nearest_tie(pair: Pair) -> float:
    """The least distance, in logits, between the last expert chosen and the first that is not, of all tokens."""
    distances = [float("inf")]

    def look(part: Any, given: tuple[Tensor, ...]) -> None:
        logits = (given[0].flatten(0, -2) @ part.router.weight.t()).sort(-1, descending=True).values
        distances.append((logits[:, : part.k].amin(-1) - logits[:, part.k :].amax(-1)).min().item())

    mixtures = [
        part for part in pair.module.modules() if isinstance(part, MixtureOfExperts) and part.k < len(part.experts)
    ]
    hooks = [part.register_forward_pre_hook(look) for part in mixtures]
    pair.y()
    for hook in hooks:
        hook.remove()
    return min(distances)


def _attention(mask: bool = False, **values: Any) -> Make:
    allowed = torch.tensor([[True] * POS, [False, True, True, False, True]]) if mask else None
    chosen = config(**values)
    angles = _angles(chosen) if chosen.positions == "rotary" else None
    return lambda kind: of_module(ready(Attention(chosen), kind), stream(kind), angles, allowed)


def _angles(chosen: ModelConfig) -> tuple[Tensor, Tensor]:
    return RotaryPositions(chosen.context, chosen.d_head, chosen.rotary_base)(0, POS)


def _attend(name: str) -> Make:
    """Three query heads to each head of keys and values."""

    def make(kind: torch.dtype) -> Pair:
        q, k, v = stream(kind, BATCH, 6, POS, 3), stream(kind, BATCH, 2, POS, 3), stream(kind, BATCH, 2, POS, 3)
        way = getattr(dot_product, name)
        rest = (True, None, Dropout(0.0)) if name == "naive" else (True, None)

        def explicit(dy: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            y, kept = way(q, k, v, *rest)
            return y, dot_product.attend_backward(dy, q, k, v, y, kept)

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        return Pair(nn.Module(), {"q": q, "k": k, "v": v}, forward, explicit)

    return make


def _rotate(kind: torch.dtype) -> Pair:
    cos, sin = RotaryPositions(9, 6, 100.0)(2, POS)

    def explicit(dy: Tensor, x: Tensor) -> tuple[Tensor, tuple[Tensor]]:
        return rotate(x, cos, sin), (rotate_backward(dy, cos, sin),)

    return Pair(nn.Module(), {"x": stream(kind, BATCH, 2, POS, 6)}, lambda x: rotate(x, cos, sin), explicit)


def _learned(kind: torch.dtype) -> Pair:
    part = ready(LearnedPositions(9, D_MODEL, 0.3), kind)

    def explicit(dy: Tensor) -> tuple[Tensor, tuple[()]]:
        y, start = part.explicit_forward(3, POS)
        part.explicit_backward(dy, start)
        return y.expand_as(dy), ()

    return Pair(part, {}, lambda: part(3, POS).expand(BATCH, -1, -1), explicit)


def _embedding(kind: torch.dtype) -> Pair:
    part, (read, _) = ready(Embedding(VOCAB, D_MODEL, 0.3), kind), tokens()

    def explicit(dy: Tensor) -> tuple[Tensor, tuple[()]]:
        y, saved = part.explicit_forward(read)
        part.explicit_backward(dy, saved)
        return y, ()

    return Pair(part, {}, lambda: part(read), explicit)


def _cross_entropy(length: int, vocab: int = VOCAB) -> Make:
    def make(kind: torch.dtype) -> Pair:
        head, (_, wanted) = ready(Linear(D_MODEL, vocab, False, 0.3), kind), tokens(length)

        def explicit(dy: Tensor, x: Tensor) -> tuple[Tensor, tuple[Tensor]]:
            loss, dx = explicit_cross_entropy(x, head, wanted, dy.item())
            return loss, (dx,)

        x = stream(kind, BATCH, length, D_MODEL)
        return Pair(head, {"x": x}, lambda x: cross_entropy(head(x), wanted), explicit)

    return make


def _tied_head(kind: torch.dtype) -> Pair:
    """Read at the start and at the end, so that one matrix receives both gradients."""
    embedding, head, (read, wanted) = Embedding(VOCAB, D_MODEL, 0.3), Linear(D_MODEL, VOCAB, False, 0.3), tokens()
    head.weight = embedding.weight
    both = ready(nn.ModuleList((embedding, head)), kind)

    def explicit(dy: Tensor) -> tuple[Tensor, tuple[()]]:
        x, saved = embedding.explicit_forward(read)
        loss, dx = explicit_cross_entropy(x, head, wanted, dy.item())
        embedding.explicit_backward(dx, saved)
        return loss, ()

    return Pair(both, {}, lambda: cross_entropy(head(embedding(read)), wanted), explicit)


def _connection(name: str) -> Make:
    """Set up so that differences keep their digits.

    Small weights: without norms, curvature grows fast with them. A wide ε: where random coefficients happen to sum to
    nothing, the norm of their sum is else nearly a jump.
    """
    shape = config(residual=name, bias=True, init_std=0.1, norm_eps=1.0)
    return lambda kind: of_module(ready(Stack(shape), kind), stream(kind))


def _block(**values: Any) -> Make:
    chosen = config(**values)
    angles = _angles(chosen) if chosen.positions == "rotary" else None
    return lambda kind: of_module(ready(Block(chosen, 1), kind), stream(kind), angles)


def _transformer(keep: str = "everything", **values: Any) -> Make:
    def make(kind: torch.dtype) -> Pair:
        model, batch = ready(Transformer(config(**values)), kind), tokens()

        def explicit(dy: Tensor) -> tuple[Tensor, tuple[()]]:
            return Explicit(keep).loss_and_grads(model, batch, dy.item()), ()

        return Pair(model, {}, lambda: model.loss(*batch), explicit)

    return make
