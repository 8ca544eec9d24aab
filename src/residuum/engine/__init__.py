"""Three ways to a loss and its gradients: PyTorch's autograd, a backward derived by hand, scalars in plain Python."""

from residuum.engine.engine import ENGINES, Engine, make_engine

__all__ = ["ENGINES", "Engine", "make_engine"]
