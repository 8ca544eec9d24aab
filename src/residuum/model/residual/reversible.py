"""Reversible: two streams that take turns, so that each state can be computed from the one after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from residuum.errors import InputError
from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved
from residuum.model.norm import make_norm
from residuum.model.precision import at_least_float32
from residuum.model.residual.base import Branch, Receiver, Residual, Stream, joined, register

State = tuple[Stream, Stream]
"""The stream that the next branch reads, and the one that it writes to."""
Returning = tuple[Stream, Stream, Stream, Stream]
"""The gradients of a state's two streams, then the streams themselves."""


@register("reversible")
class Reversible(Residual):
    """(x, z) ← (z + f(norm(x)), x): attention reads one stream and writes to the other, which feed-forward reads.

    It inverts to x = its second, z = its first − f(norm(x)), so the explicit pair keeps the last state alone, whatever
    the depth: its backward takes the values back with the gradients, and computes each f once more, which costs a third
    of the time. dx = g_z + (J_f J_norm)ᵀ g_x, dz = g_x. Both begin as the embedding, and their mean is read at the end;
    Reformer puts them side by side, which takes a head twice as wide. They are float32 where the weights are of less:
    what was rounded away could not be taken back.

    Source: Gomez et al. 2017, https://arxiv.org/abs/1707.04585; Kitaev et al. 2020, https://arxiv.org/abs/2001.04451.
    """

    use = "Where activations fill the memory: with the explicit engine they take the same at any depth."

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.norm = make_norm(config)

    def begin(self, x: Stream) -> State:
        x = at_least_float32(x)
        return x, x

    def begin_backward(self, dstate: Returning) -> Stream:
        dx, dz, _, _ = dstate
        return self._as_weights(dx + dz)

    def forward(self, state: State, branch: Branch, *args: Any) -> State:
        x, z = state
        return z + branch(self.norm(self._as_weights(x)), *args), x

    def explicit_forward(self, state: State, branch: Branch, *args: Any) -> tuple[State, Saved]:
        """Keeps no activation; where the branch drew random numbers, the state from which it drew them."""
        x, z = state
        draws = _random(x).get_rng_state()
        write, _ = branch.explicit_forward(self.norm(self._as_weights(x)), *args)
        drew = not torch.equal(draws, _random(x).get_rng_state())
        if drew and get_proxy_mode() is not None:
            raise InputError(
                "a compiled pass cannot draw the same numbers twice, as model.residual = 'reversible' does: "
                "set model.dropout to 0, or leave run.compile away"
            )
        return (z + write, x), (branch, args, draws if drew else None)

    def explicit_backward(self, dstate: Returning, saved: Saved, parts: Receiver | None = None) -> Returning:
        branch, args, draws = saved
        dy, dskipped, y, x = dstate
        normed, of_norm = self.norm.explicit_forward(self._as_weights(x))
        now = _random(x).get_rng_state()
        if draws is not None:
            _random(x).set_rng_state(draws)
        write, of_branch = branch.explicit_forward(normed, *args)
        _random(x).set_rng_state(now)
        dnormed = branch.explicit_backward(self._as_weights(dy), of_branch)
        through_branch = self.norm.explicit_backward(dnormed, of_norm)
        return joined(dskipped, through_branch, parts), dy, x, y - write

    def end(self, state: State) -> Stream:
        x, z = state
        return self._as_weights((x + z) / 2)

    def explicit_end(self, state: State) -> tuple[Stream, Saved]:
        return self.end(state), state

    def explicit_end_backward(self, dx: Stream, saved: Saved) -> Returning:
        half = at_least_float32(dx) / 2
        return half, half, *saved

    def _as_weights(self, x: Tensor) -> Tensor:
        return x.to(self.norm.gain.dtype)


def _random(x: Tensor) -> Any:
    """Where the random numbers of x's device come from."""
    return torch.random if x.device.type == "cpu" else torch.get_device_module(x.device)
