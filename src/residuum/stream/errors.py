"""What this room raises when a model cannot be looked at."""


class TraceError(ValueError):
    """The model could not be run, or what it returned cannot be measured. The message says why and how to mend it."""


def in_one_line(error: BaseException, module: str = "") -> str:
    """What somebody else's code raised, in which module, and how to mend it where that is known, in one line."""
    line = " ".join(str(error).split())
    if "not implemented for 'Half'" in line:
        line += " (half precision cannot do this on a CPU: give model.float(), model.bfloat16(), or a GPU)"
    elif "same device" in line or "different device" in line:
        line += " (move the model and its inputs to one device)"
    name = type(error).__name__ + (f" in {module}" if module else "")
    return f"{name}: {line}" if line else name
