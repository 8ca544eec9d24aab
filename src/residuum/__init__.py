"""See, verify and train the residual stream of any Transformer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from residuum.audit import Audit as Audit
    from residuum.audit import audit as audit
    from residuum.errors import InputError as InputError
    from residuum.model import ModelConfig as ModelConfig
    from residuum.model import Sampling as Sampling
    from residuum.model import Transformer as Transformer
    from residuum.model import generate as generate
    from residuum.monitor import Monitor as Monitor
    from residuum.stream import ResidualGraph as ResidualGraph
    from residuum.stream import TraceError as TraceError
    from residuum.stream import flow as flow
    from residuum.stream import trace as trace
    from residuum.stream import where_nan as where_nan
    from residuum.train import load as load

# Looked up when first used: `import residuum` and `residuum --help` answer before PyTorch would have loaded.
_HOME = {
    "Audit": "audit",
    "InputError": "errors",
    "ModelConfig": "model",
    "Monitor": "monitor",
    "TraceError": "stream",
    "ResidualGraph": "stream",
    "Sampling": "model",
    "Transformer": "model",
    "audit": "audit",
    "flow": "stream",
    "generate": "model",
    "load": "train",
    "trace": "stream",
    "where_nan": "stream",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        room = import_module(f"residuum.{_HOME[name]}")
        value = room if name == "audit" else getattr(room, name)  # see residuum/audit/__init__.py
        globals()[name] = value
        return value
    raise AttributeError(f"module 'residuum' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
