"""Claims, one file each: adding a file with a `CLAIM` is all that it takes to add one."""

from importlib import import_module
from pkgutil import iter_modules

from residuum.study.claims.claim import Claim, Outcome, Undecided

CLAIMS: list[Claim] = [
    module.CLAIM
    for module in (import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__))
    if hasattr(module, "CLAIM")
]

__all__ = ["CLAIMS", "Claim", "Outcome", "Undecided"]
