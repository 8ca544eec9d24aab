"""Normalisations over the last axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from residuum.model.config import ModelConfig


class LayerNorm(nn.Module):
    """y = (x − mean(x)) / √(var(x) + ε) · gain + bias, mean and (biased) variance over d_model.

    Source: Ba, Kiros, Hinton 2016, https://arxiv.org/abs/1607.06450.
    """

    def __init__(self, d_model: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return F.layer_norm(x, self.gain.shape, self.gain, self.bias, self.eps)


class RMSNorm(nn.Module):
    """y = x / √(mean(x²) + ε) · gain, the mean over d_model.

    Source: Zhang, Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return F.rms_norm(x, self.gain.shape, self.gain, self.eps)


def make_norm(config: ModelConfig) -> LayerNorm | RMSNorm:
    """The normalisation that `config.norm` names."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.d_model, config.norm_eps)
    return LayerNorm(config.d_model, config.norm_eps, config.bias)
