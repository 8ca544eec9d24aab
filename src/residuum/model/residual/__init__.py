"""Residual connections, one file each. Adding a file here is all that it takes to add one."""

from importlib import import_module
from pkgutil import iter_modules

from residuum.model.residual.base import (
    REGISTRY,
    Branch,
    Optim,
    Parts,
    Receiver,
    Residual,
    State,
    register,
    residual_named,
    residual_of,
)

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "REGISTRY",
    "Branch",
    "Optim",
    "Parts",
    "Receiver",
    "Residual",
    "State",
    "register",
    "residual_named",
    "residual_of",
]
