"""The same measurements during somebody else's training run."""

from residuum.monitor.destination import read_lines
from residuum.monitor.monitor import Monitor

__all__ = ["Monitor", "read_lines"]
