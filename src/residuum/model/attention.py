"""Attention, multi-head and grouped-query, and the keys and values it remembers while generating."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from residuum.model.config import ModelConfig
from residuum.model.linear import Linear
from residuum.model.positions import rotate


class LayerCache:
    """Keys and values of the tokens one layer has read, so that each is computed once."""

    def __init__(self, keys: Float[Tensor, "batch kv_heads context d_head"]) -> None:
        self.keys = keys
        self.values = torch.empty_like(keys)
        self.length = 0

    def append(
        self, k: Float[Tensor, "batch kv_heads new d_head"], v: Float[Tensor, "batch kv_heads new d_head"]
    ) -> tuple[Float[Tensor, "batch kv_heads all d_head"], Float[Tensor, "batch kv_heads all d_head"]]:
        """Add the newest keys and values and return all of them."""
        end = self.length + k.shape[2]
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    """softmax(q kᵀ / √d_head) v over heads, then the output projection.

    With fewer key and value heads than query heads, consecutive query heads share one (grouped-query attention,
    https://arxiv.org/abs/2305.13245). Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.kv_heads, self.d_head = config.n_heads, config.kv_heads, config.d_head
        self.causal = config.causal
        self.dropout = config.dropout
        width = self.kv_heads * self.d_head
        self.q = Linear(config.d_model, config.d_model, config.bias, config.init_std)
        self.k = Linear(config.d_model, width, config.bias, config.init_std)
        self.v = Linear(config.d_model, width, config.bias, config.init_std)
        self.out = Linear(config.d_model, config.d_model, config.bias, config.write_std)

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        angles: tuple[Tensor, Tensor] | None = None,
        mask: Bool[Tensor, "batch pos"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """`angles` are the rotary cosine and sine of these places; `mask` is True where a token is no padding."""
        batch, length, d_model = x.shape
        q = self.q(x).view(batch, length, self.n_heads, self.d_head).transpose(1, 2)
        k = self.k(x).view(batch, length, self.kv_heads, self.d_head).transpose(1, 2)
        v = self.v(x).view(batch, length, self.kv_heads, self.d_head).transpose(1, 2)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        if cache is not None:
            k, v = cache.append(k, v)
        allowed = self._allowed(mask, length, k.shape[2], x.device)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=allowed,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal and allowed is None and length > 1,
            enable_gqa=self.kv_heads != self.n_heads,
        )
        y = self.out(y.transpose(1, 2).reshape(batch, length, d_model))
        return F.dropout(y, self.dropout, self.training)

    def _allowed(self, mask: Tensor | None, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """Which key each query may see, or None where the fused kernel's own causal flag says it all."""
        if mask is None and (queries == keys or queries == 1 or not self.causal):
            return None
        places = torch.arange(keys, device=device)
        own = places[keys - queries :, None]
        allowed = places <= own if self.causal else torch.ones(queries, keys, dtype=torch.bool, device=device)
        if mask is None:
            return allowed
        # A padded query may see itself: a row with nothing to see would be 0/0.
        return (allowed & mask[:, None, None, :]) | (places == own)
