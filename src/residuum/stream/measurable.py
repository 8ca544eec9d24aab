"""Whether a model and its inputs have values and gradients that can be measured at all."""

from __future__ import annotations

from typing import Any

from torch import nn

from residuum.stream.capture import tensors_in
from residuum.stream.errors import TraceError


def check_measurable(model: nn.Module, args: Any, kwargs: Any) -> None:
    """Raises `TraceError` for what has no values, can have no gradient, or lies where the model does not."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise TraceError("parameters on the meta device have no values to measure: residuum.trace gives the structure")
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise TraceError("the model was built under torch.inference_mode and can have no gradient: build it outside")
    homes = sorted({str(parameter.device) for parameter in model.parameters()})
    for value in tensors_in((args, kwargs)):
        if homes and str(value.device) not in homes:
            model_on = f"the model on {' and '.join(homes)}"
            raise TraceError(f"an input is on {value.device}, {model_on}: move the input with .to({homes[0]!r})")
