"""The shape of a Transformer, checked before anything is built from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from residuum.errors import InputError
from residuum.fields import check_fields, check_range


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Transformer: widths in entries, lengths in tokens. Raises `InputError` if it cannot be built."""

    vocab_size: int = 256
    """Number of distinct tokens. When training, the tokenizer decides."""
    context: int = 256
    """Longest sequence the model reads, in tokens."""
    d_model: int = 128
    """Width of the residual stream."""
    n_layers: int = 4
    """Number of blocks; each has two residual connections."""
    n_heads: int = 4
    """Number of attention heads; must divide d_model."""
    n_kv_heads: int | None = None
    """Number of key and value heads (grouped-query attention); must divide n_heads. None: as many as n_heads."""
    d_ff: int | None = None
    """Inner width of the feed-forward. None: 4 d_model; with a gate, a third matrix, 8/3 d_model."""
    activation: Literal["gelu", "relu", "squared_relu", "swiglu", "squared_reglu"] = "gelu"
    """Non-linearity of the feed-forward; the last two gate it, with silu or the squared relu of a third matrix."""
    linear: Literal["float", "ternary"] = "float"
    """Linear maps of the branches. ternary: weights −1, 0 and 1, activations of eight bits, as BitNet b1.58's."""
    sub_norm: bool = True
    """Whether a ternary map that does not read the stream, a branch's last, has an rms-norm of its own before it."""
    n_experts: int = 1
    """Number of feed-forwards in a block, each of the width d_ff; with more than 1 a router chooses for each token."""
    experts_per_token: int = 2
    """Number of experts that read each token, where there are several; at most n_experts."""
    balance: float = 0.01
    """Weight in the loss of what keeps the experts evenly used, in each layer; held-out text is scored without it."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation used throughout."""
    norm_eps: float = 1e-5
    """Added to the variance under the root, so that a constant input divides by no zero."""
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned"
    """How a token's place is told: a learned or a sinusoidal vector added at the start, or queries and keys rotated."""
    rotary_base: float = 10000.0
    """Longest rotary wavelength is 2π times this, in tokens."""
    embedding_norm: bool = False
    """Whether what enters the stream is normalised first, as BERT's embedding is."""
    residual: str = "pre"
    """Residual connection of every sub-layer, by name; package.module:Class is one of your own."""
    residual_scale: float | None = None
    """The residual connection's own scale (see its page), or the first value of it. None: what its paper says."""
    residual_drop: float | None = None
    """Share of writes that the residual connection drops while training. None: what its paper says."""
    residual_streams: int | None = None
    """Number of streams of a residual connection that has several. None: what its paper says."""
    causal: bool = True
    """True: a decoder, where a token sees itself and those before it. False: an encoder, where it sees all."""
    head: Literal["tied", "untied", "none"] = "tied"
    """Read-out to the vocabulary: the embedding's matrix, one of its own, or none (the output is the last state)."""
    bias: bool = False
    """Whether linear maps and layer norms have a bias."""
    dropout: float = 0.0
    """Share of entries dropped from the embedding, the attention pattern and each branch's write while training."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""
    branch_init: Literal["residual", "gpt2", "zero"] = "residual"
    """First weights of the branches: residual, what the residual connection asks for; or its last matrix alone: gpt2
    divides init_std by √(2 n_layers), zero makes the write 0."""

    def __post_init__(self) -> None:
        check_fields(self, "model")
        check_range(self, "model", 1, 2**31 - 1, ("vocab_size", "context", "d_model", "n_heads", "n_kv_heads", "d_ff"))
        check_range(self, "model", 1, 100_000, ("n_layers", "n_experts", "experts_per_token"))
        if self.d_model % self.n_heads:
            fits = _divisors_near(self.d_model, self.n_heads)
            raise InputError(
                f"model.d_model = {self.d_model} is not divisible by model.n_heads = {self.n_heads}: "
                f"set model.n_heads to {fits}, or model.d_model to a multiple of {self.n_heads}"
            )
        if self.n_heads % self.kv_heads:
            fits = _divisors_near(self.n_heads, self.kv_heads)
            raise InputError(
                f"model.n_heads = {self.n_heads} is not divisible by model.n_kv_heads = {self.kv_heads}: "
                f"set model.n_kv_heads to {fits}"
            )
        if self.positions == "rotary" and self.d_head % 2:
            raise InputError(
                f"model.positions = 'rotary' turns pairs of entries, and each head has {self.d_head} "
                "(model.d_model / model.n_heads): choose them so that it is even"
            )
        if self.n_experts > 1 and self.experts_per_token > self.n_experts:
            raise InputError(
                f"model.experts_per_token = {self.experts_per_token} is more than model.n_experts = {self.n_experts}: "
                f"set model.experts_per_token to {self.n_experts} or less"
            )
        if self.balance < 0:
            raise InputError(f"model.balance is {self.balance}: give a number of at least 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"model.dropout is {self.dropout}: give a share from 0 up to, not including, 1")
        check_range(self, "model", 1, 1024, ("residual_streams",))
        if self.residual_drop is not None and not 0 <= self.residual_drop < 1:
            raise InputError(
                f"model.residual_drop is {self.residual_drop}: give a share from 0 up to, not including, 1"
            )
        for name in ("norm_eps", "rotary_base", "init_std"):
            if not getattr(self, name) > 0:
                raise InputError(f"model.{name} is {getattr(self, name)}: give a number above 0")

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def ff_width(self) -> int:
        """d_ff, or its default: 4 d_model; with a gate 8/3 d_model, rounded up to a multiple of 8."""
        if self.d_ff is not None:
            return self.d_ff
        return -(-8 * self.d_model // 24) * 8 if self.gated else 4 * self.d_model

    @property
    def gated(self) -> bool:
        """Whether the feed-forward has a third matrix."""
        return self.activation in ("swiglu", "squared_reglu")

    @property
    def write_std(self) -> float:
        """Initial standard deviation of each branch's last matrix.

        GPT-2 divides by √(2 n_layers), the number of writes under the root, so that the stream's variance does not grow
        with depth (Radford et al. 2019, section 2.3).
        """
        return 0.0 if self.branch_init == "zero" else self.init_std / (2 * self.n_layers) ** 0.5


def _divisors_near(number: int, wanted: int) -> str:
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    divisors = {*small, *(number // d for d in small)}
    return " or ".join(str(d) for d in sorted(sorted(divisors, key=lambda d: abs(d - wanted))[:2]))
