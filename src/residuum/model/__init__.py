"""The Transformer, part by part."""

from residuum.model.block import Block
from residuum.model.config import ModelConfig
from residuum.model.generate import CachedTransformer, Continuation, Decoder, generate
from residuum.model.residual import Residual
from residuum.model.sample import Sampling
from residuum.model.transformer import Transformer

__all__ = [
    "Block",
    "CachedTransformer",
    "Continuation",
    "Decoder",
    "ModelConfig",
    "Residual",
    "Sampling",
    "Transformer",
    "generate",
]
