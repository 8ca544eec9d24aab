"""Judge the residual connections of any model: rules, findings, reports."""

import sys
from types import ModuleType
from typing import Any

from residuum.audit.audit import Audit, audit, judge
from residuum.audit.finding import Finding

__all__ = ["Audit", "Finding", "audit", "judge"]


class _CallableModule(ModuleType):
    """`residuum.audit` names both this room and its one verb; Python binds the room, so the room answers the call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Audit:
        return audit(*args, **kwargs)


_CallableModule.__call__.__doc__ = audit.__doc__
sys.modules[__name__].__class__ = _CallableModule
