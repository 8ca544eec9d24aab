"""Attention, multi-head and grouped-query, and the keys and values it remembers while generating."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from residuum.model.attend import attend, attend_backward
from residuum.model.config import ModelConfig
from residuum.model.dropout import Dropout
from residuum.model.gradient import Saved
from residuum.model.linear import Linear, make_linear, read_once
from residuum.model.positions import rotate, rotate_backward

Values = Float[Tensor, "batch kv_heads pos d_head"]


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


@runtime_checkable
class Mix(Protocol):
    """What may be done to a layer's values before they are remembered and attended to, with its explicit pair."""

    def __call__(self, v: Values) -> Values: ...

    def explicit_forward(self, v: Values) -> tuple[Values, Saved]: ...

    def explicit_backward(self, dv: Values, saved: Saved) -> Values: ...


class Attention(nn.Module):
    """softmax(q kᵀ / √d_head) v over heads, then the output projection.

    With fewer key and value heads than query heads, consecutive query heads share one (grouped-query attention,
    https://arxiv.org/abs/2305.13245). Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.kv_heads, self.d_head = config.n_heads, config.kv_heads, config.d_head
        self.causal = config.causal
        self.dropout = Dropout(config.dropout)
        width = self.kv_heads * self.d_head
        self.q = make_linear(config, config.d_model, config.d_model, config.init_std)
        self.k = make_linear(config, config.d_model, width, config.init_std)
        self.v = make_linear(config, config.d_model, width, config.init_std)
        self.out = make_linear(config, config.d_model, config.d_model, config.write_std, inner=True)

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        angles: tuple[Tensor, Tensor] | None = None,
        mask: Bool[Tensor, "batch pos"] | None = None,
        cache: LayerCache | None = None,
        mix: Mix | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """`angles` are the rotary cosine and sine of these places; `mask` is True where a token is no padding.

        `mix`, where a residual connection gives one, is applied to these places' values.
        """
        q, k, v = self._heads(self.q(x)), self._heads(self.k(x)), self._heads(self.v(x))
        if mix is not None:
            v = mix(v)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        if cache is not None:
            k, v = cache.append(k, v)
        length = q.shape[2]
        allowed = self._allowed(mask, length, k.shape[2], x.device)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=allowed,
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=self.causal and allowed is None and length > 1,
            enable_gqa=self.kv_heads != self.n_heads,
        )
        return self.dropout(self.out(_joined(y)))

    def explicit_forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        angles: tuple[Tensor, Tensor] | None = None,
        mask: Bool[Tensor, "batch pos"] | None = None,
        mix: Mix | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_model"], Saved]:
        """Keeps x, k, v, what was attended to, and what the scaled dot product asks for; q is computed again."""
        read = read_once(x, self.q, self.k, self.v)
        q, k, v = (self._heads(part.explicit_forward(read)[0]) for part in (self.q, self.k, self.v))
        del read
        of_mix: Saved = ()
        if mix is not None:
            v, of_mix = mix.explicit_forward(v)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        allowed = self._allowed(mask, q.shape[2], k.shape[2], x.device)
        attended, kept = attend(q, k, v, self.causal, allowed, self.dropout)
        y, _ = self.out.explicit_forward(_joined(attended))
        y, dropped = self.dropout.explicit_forward(y)
        return y, (x, k, v, attended, kept, angles, dropped, mix, of_mix)

    def explicit_backward(
        self, dy: Float[Tensor, "batch pos d_model"], saved: Saved
    ) -> Float[Tensor, "batch pos d_model"]:
        """Back through the output map, the scaled dot product, the rotation; x was read three times, so dx is a sum."""
        x, k, v, attended, kept, angles, dropped, mix, of_mix = saved
        dy = self.dropout.explicit_backward(dy, dropped)
        dattended = self._heads(self.out.explicit_backward(dy, _joined(attended)))
        read, to_q = read_once(x, self.q, self.k, self.v), self.q.ready()
        q = self._heads(to_q.explicit_forward(read)[0])
        if angles is not None:
            q = rotate(q, *angles)
        dq, dk, dv = attend_backward(dattended, q, k, v, attended, kept)
        if angles is not None:
            dq, dk = rotate_backward(dq, *angles), rotate_backward(dk, *angles)
        if mix is not None:
            dv = mix.explicit_backward(dv, of_mix)
        dx = to_q.explicit_backward(_joined(dq), read)
        dx += self.k.explicit_backward(_joined(dk), read)
        dx += self.v.explicit_backward(_joined(dv), read)
        return dx

    def value_path(self) -> tuple[list[Linear], list[Linear]]:
        return [self.v], [self.out]

    def _heads(self, x: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch heads pos d_head"]:
        return x.view(*x.shape[:2], -1, self.d_head).transpose(1, 2)

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


def _joined(x: Float[Tensor, "batch heads pos d_head"]) -> Float[Tensor, "batch pos width"]:
    return x.transpose(1, 2).flatten(2)
