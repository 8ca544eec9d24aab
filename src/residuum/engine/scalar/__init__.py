"""A GPT in plain Python: every number a `Value`, nothing imported but the standard library.

To read: `value.py` (numbers and their gradients), `gpt.py` (the model), `adam.py`, `sample.py`, `__main__.py` (all of
them together). Only `engine.py`, which is not imported here, knows PyTorch.
"""

from residuum.engine.scalar.adam import AdamW
from residuum.engine.scalar.gpt import GPT, Shape
from residuum.engine.scalar.sample import sample
from residuum.engine.scalar.value import Value

__all__ = ["GPT", "AdamW", "Shape", "Value", "sample"]
