"""What every residual connection is: a module that joins the stream and one branch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from residuum.errors import InputError, meant
from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved
from residuum.model.linear import Linear

if TYPE_CHECKING:
    from residuum.model.transformer import Transformer

Stream = Float[Tensor, "batch pos d_model"]

State = Any
"""What goes from one connection to the next: x; or several streams in one tensor; or a tuple whose first is x."""


class Parts(NamedTuple):
    """The two parts of the gradient at a residual connection, both shaped as the state (a tuple's first tensor)."""

    identity: Tensor
    branch: Tensor


@runtime_checkable
class Receiver(Protocol):
    """What both parts of each connection's gradient are handed to: a list, say."""

    def append(self, parts: Parts, /) -> None: ...


@runtime_checkable
class Branch(Protocol):
    """What a residual connection joins to the stream. The first thing that `explicit_forward` keeps is its input."""

    def __call__(self, x: Tensor, *args: Any) -> Tensor: ...

    def explicit_forward(self, x: Tensor, *args: Any) -> tuple[Tensor, Saved]: ...

    def explicit_backward(self, dy: Tensor, saved: Saved) -> Tensor: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def value_path(self) -> tuple[list[Linear], list[Linear]]:
        """The matrices to each of which the write is proportional: those in the middle, and the last."""


class Optim(NamedTuple):
    """What a connection asks of the optimizer for one parameter: factors, and whether it decays."""

    lr: float = 1.0
    eps: float = 1.0
    decay: bool = True


class Residual(nn.Module):
    """How the stream begins, how a branch is joined to it, and what is read at its end.

    `forward(state, branch, *args)`, the step that connects, calls `branch(input, *args)` once. Most connections have
    one stream, whose state is x; one that needs more, such as all earlier states, says so in `begin` and `end`, which
    are asked of the first and of the last connection. A subclass holds its own norms and scales. Shapes: x [batch, pos,
    d_model].

    `place` counts the connections before this one: attention's of block l (from 0) has 2 l, the feed-forward's 2 l + 1.
    """

    name: ClassVar[str]
    """What it is chosen by."""
    use: ClassVar[str] = ""
    """When to choose it, in a sentence."""
    final_norm: ClassVar[bool] = True
    """Whether the stream still needs a norm after the last block."""
    identity_at_start: ClassVar[bool] = False
    """Whether blocks leave the stream as it is before the first step."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Those fields of `ModelConfig` beginning with `residual_` that mean something to it."""

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__()
        self.place = place
        self.n_places = 2 * config.n_layers

    @classmethod
    def initialise(cls, model: Transformer) -> None:
        """First values that depend on depth or width; those of GPT-2 are there already."""

    @classmethod
    def underived(cls) -> list[str]:
        """What of its hand-derived backward nobody has written: all that is older in its ancestry than its forward."""

        def age(method: str) -> int:
            return next(age for age, kind in enumerate(cls.__mro__) if method in vars(kind))

        return [by_hand for method, *pair in BY_HAND for by_hand in pair if age(by_hand) > age(method)]

    @classmethod
    def optim(cls, model: Transformer) -> dict[str, Optim]:
        """What the optimizer should do otherwise, by parameter."""
        del model
        return {}

    def begin(self, x: Stream) -> State:
        """The first state."""
        return x

    def begin_backward(self, dstate: State) -> Stream:
        """dx from the first state's gradient."""
        return dstate

    def forward(self, state: State, branch: Branch, *args: Any) -> State:
        raise NotImplementedError

    def explicit_forward(self, state: State, branch: Branch, *args: Any) -> tuple[State, Saved]:
        """The next state, and what `explicit_backward` needs: the branch itself is part of it."""
        raise NotImplementedError

    def explicit_backward(self, dstate: State, saved: Saved, parts: Receiver | None = None) -> State:
        """The sum of what comes back on the identity path and on the branch path; `parts` receives both."""
        raise NotImplementedError

    def end(self, state: State) -> Stream:
        """What is read of the last state."""
        return state

    def explicit_end(self, state: State) -> tuple[Stream, Saved]:
        """`end`, and what its backward needs."""
        return state, ()

    def explicit_end_backward(self, dx: Stream, saved: Saved) -> State:  # noqa: ARG002 - for subclasses that kept some
        """The last state's gradient."""
        return dx


BY_HAND = (
    ("forward", "explicit_forward", "explicit_backward"),
    ("begin", "begin_backward"),
    ("end", "explicit_end", "explicit_end_backward"),
)
"""Methods, and beside each those that derive it by hand."""


REGISTRY: dict[str, type[Residual]] = {}

R = TypeVar("R", bound=type[Residual])


def register(name: str) -> Callable[[R], R]:
    """`@register("half")` above a subclass of `Residual`: it is then chosen by that name, and tested like the rest."""

    def put(cls: R) -> R:
        known = REGISTRY.get(name)
        if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError(f"a residual connection called '{name}' is there already ({known}): choose another name")
        cls.name = name
        REGISTRY[name] = cls
        return cls

    return put


def residual_named(name: str) -> type[Residual]:
    """The residual connection called `name`; `package.module:Class` is one of somebody's own.

    Raises `InputError` if there is none.
    """
    if ":" in name:
        return _imported(name)
    if name not in REGISTRY:
        raise InputError(
            f"model.residual = '{name}' is no residual connection{meant(name, REGISTRY)}: "
            "residuum check --help lists them; package.module:Class is one of your own"
        )
    return REGISTRY[name]


def residual_of(config: ModelConfig) -> type[Residual]:
    """The residual connection that `config` names. Raises `InputError` for settings that mean nothing to it."""
    chosen = residual_named(config.residual)
    for field in ("residual_scale", "residual_drop", "residual_streams"):
        if getattr(config, field) is not None and field not in chosen.settings:
            able = ", ".join(sorted(name for name, known in REGISTRY.items() if field in known.settings))
            own = f", or name it in the class's `settings` ('{field}',)" if ":" in config.residual else ""
            raise InputError(
                f"model.{field} means nothing to model.residual = '{config.residual}': leave it away, or choose "
                f"{able}{own}"
            )
    return chosen


def joined(identity: Tensor, branch: Tensor, parts: Receiver | None) -> Tensor:
    """Where the gradient's two paths meet again: dx = identity part + branch part."""
    if parts is not None:
        parts.append(Parts(identity, branch))
    return identity + branch


def _imported(target: str) -> type[Residual]:
    module, _, attribute = target.partition(":")
    if not all(part.isidentifier() for part in module.split(".")):
        raise InputError(f"'{target}': '{module}' is no module's name: give package.module:Class")
    here = str(Path.cwd())  # which the module may change
    sys.path.insert(0, here)
    try:
        found = getattr(import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise InputError(
            f"'{target}': there is no module {error.name}, here or where Python looks: name another, or run this in "
            "the folder that has it, or with PYTHONPATH set to that"
        ) from error
    except (Exception, SystemExit) as error:
        where = f"{Path(error.filename or '').name}:{error.lineno}: " if isinstance(error, SyntaxError) else ""
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        raise InputError(
            f"'{target}': importing {module} raised {type(error).__name__} ({where}{said}): mend it"
        ) from error
    finally:
        sys.path.remove(here)
    if found is None:
        raise InputError(f"'{target}': module {module} has no {attribute or 'empty name'}: name the class")
    if not (isinstance(found, type) and issubclass(found, Residual)):
        raise InputError(f"'{target}' is no residual connection: give package.module:Class of a subclass of Residual")
    if "name" not in vars(found):  # an inherited one is another's
        raise InputError(f"'{target}' has no name: put @register(\"its-name\") above the class")
    return found
