"""What this room raises when a model cannot be looked at."""


class TraceError(ValueError):
    """The model could not be run, or what it returned cannot be measured. The message says why and how to mend it."""


def in_one_line(error: BaseException) -> str:
    """What somebody else's code raised, in one line, and how to mend it where that is known."""
    line = " ".join(str(error).split())
    if "not implemented for 'Half'" in line:
        line += " (half precision cannot do this on a CPU: give model.float(), model.bfloat16(), or a GPU)"
    elif "same device" in line or "different device" in line:
        line += " (move the model and its inputs to one device)"
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
