"""The Transformer, part by part."""

from residuum.model.block import Block
from residuum.model.config import ModelConfig
from residuum.model.generate import generate
from residuum.model.residual import Residual
from residuum.model.transformer import Transformer

__all__ = ["Block", "ModelConfig", "Residual", "Transformer", "generate"]
