"""What this room raises when a model cannot be looked at."""


class TraceError(ValueError):
    """The model could not be run, or what it returned cannot be measured. The message says why and how to mend it."""
