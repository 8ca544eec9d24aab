"""Every hand-derived backward against finite differences and against autograd."""

from residuum.engine.check.check import check, parts
from residuum.engine.check.measure import BOUNDS, Row

__all__ = ["BOUNDS", "Row", "check", "parts"]
