"""The rules of an audit, one file each. Adding a file here is all that it takes to add one."""

from importlib import import_module
from pkgutil import iter_modules

from residuum.audit.finding import Rule

RULES: list[Rule] = sorted(
    (
        import_module(f"{__name__}.{module.name}").RULE
        for module in iter_modules(__path__)
        if not module.name.startswith("_")
    ),
    key=lambda rule: rule.code,
)
