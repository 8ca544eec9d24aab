"""The whole model, decoder or encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from residuum.model.attention import LayerCache
from residuum.model.block import Block
from residuum.model.config import ModelConfig
from residuum.model.cross_entropy import cross_entropy
from residuum.model.dropout import Dropout
from residuum.model.embedding import Embedding
from residuum.model.experts import Balance
from residuum.model.gradient import Saved
from residuum.model.linear import Linear
from residuum.model.norm import make_norm
from residuum.model.positions import LearnedPositions, RotaryPositions, SinusoidalPositions
from residuum.model.residual import Branch, Residual, residual_of


class Transformer(nn.Module):
    """Tokens to scores over the vocabulary; to the last state where `config.head` is "none".

    As a decoder (`config.causal`) the scores at a place are of the token after it; as an encoder, of the token at it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.d_model, config.init_std)
        self.positions: LearnedPositions | SinusoidalPositions | None = None
        self.rotary: RotaryPositions | None = None
        if config.positions == "learned":
            self.positions = LearnedPositions(config.context, config.d_model, config.init_std)
        elif config.positions == "sinusoidal":
            self.positions = SinusoidalPositions(config.context, config.d_model)
        else:
            self.rotary = RotaryPositions(config.context, config.d_head, config.rotary_base)
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.dropout = Dropout(config.dropout)
        blocks = [Block(config, layer) for layer in range(config.n_layers)]
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.final_norm = make_norm(config) if residual_of(config).final_norm else None
        self.head: Linear | None = None
        if config.head != "none":
            self.head = Linear(config.d_model, config.vocab_size, bias=False, std=config.init_std)
            if config.head == "tied":
                self.head.weight = self.embedding.weight
        if config.branch_init == "residual":
            residual_of(config).initialise(self)

    def connections(self) -> Iterator[tuple[Residual, Branch]]:
        """Every residual connection and its branch, in the order of the forward."""
        for block in self.blocks:
            yield block.attn_residual, block.attn
            yield block.ff_residual, block.ff

    @property
    def first_residual(self) -> Residual:
        """The connection that says how the stream begins."""
        return self.blocks[0].attn_residual

    @property
    def last_residual(self) -> Residual:
        """The connection that says what is read at the stream's end."""
        return self.blocks[-1].ff_residual

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"] | None = None,
        cache: list[LayerCache] | None = None,
    ) -> Float[Tensor, "batch pos out"]:
        """`mask` is True where a token is real; `cache` (decoder only, from `new_cache`) holds the tokens before these.

        Raises `ValueError` where tokens and cache together are longer than `config.context`.
        """
        x = self.states(tokens, mask, cache)
        return x if self.head is None else self.head(x)

    def states(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"] | None = None,
        cache: list[LayerCache] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The last state of the residual stream, after the final norm where there is one."""
        start, length = cache[0].length if cache else 0, tokens.shape[1]
        self._check_length(start + length)
        if cache is not None and (mask is not None or not self.config.causal):
            raise ValueError("a cache is for a decoder without padding")
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(start, length)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        angles = self.rotary(start, length) if self.rotary is not None else None
        state = self.first_residual.begin(self.dropout(x))
        for layer, block in enumerate(self.blocks):
            state = block(state, angles, mask, cache[layer] if cache else None)
        x = self.last_residual.end(state)
        return x if self.final_norm is None else self.final_norm(x)

    def loss(self, tokens: Int[Tensor, "batch pos"], targets: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
        """Mean cross-entropy of `targets`, in nats per token; a target of −100 counts for nothing.

        Where blocks have experts, each layer's balance term is added to it.
        """
        with Balance(block.ff for block in self.blocks) as balance:
            scores = self(tokens)
        return balance.added_to(cross_entropy(scores, targets))

    def explicit_embed(self, tokens: Int[Tensor, "batch pos"]) -> tuple[Float[Tensor, "batch pos d_model"], Saved]:
        """The stream's first state, state[0]. Raises `ValueError` for more tokens than `config.context`."""
        self._check_length(tokens.shape[1])
        x, of_embedding = self.embedding.explicit_forward(tokens)
        of_positions = None
        if self.positions is not None:
            places, of_positions = self.positions.explicit_forward(0, tokens.shape[1])
            x = x + places
        of_norm: Saved = ()
        if self.embedding_norm is not None:
            x, of_norm = self.embedding_norm.explicit_forward(x)
        x, dropped = self.dropout.explicit_forward(x)
        return x, (of_embedding, of_positions, of_norm, dropped)

    def explicit_embed_backward(self, dx: Float[Tensor, "batch pos d_model"], saved: Saved) -> None:
        """Where the gradient ends: in the rows of both tables that were read."""
        of_embedding, of_positions, of_norm, dropped = saved
        dx = self.dropout.explicit_backward(dx, dropped)
        if self.embedding_norm is not None:
            dx = self.embedding_norm.explicit_backward(dx, of_norm)
        if self.positions is not None:
            self.positions.explicit_backward(dx, of_positions)
        self.embedding.explicit_backward(dx, of_embedding)

    def _check_length(self, length: int) -> None:
        if length > self.config.context:
            raise ValueError(f"{length} tokens are more than the model's context of {self.config.context}")

    def new_cache(self, batch: int) -> list[LayerCache]:
        """Empty keys and values for every layer, room for `config.context` tokens."""
        like = self.embedding.weight
        shape = (batch, self.config.kv_heads, self.config.context, self.config.d_head)
        return [LayerCache(torch.empty(shape, dtype=like.dtype, device=like.device)) for _ in self.blocks]
