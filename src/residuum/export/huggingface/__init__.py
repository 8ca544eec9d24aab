"""Folders that transformers loads with classes of its own, written from runs and read into them.

transformers itself is not needed: a folder is JSON and safetensors.
"""

from residuum.export.huggingface.write import export, write

__all__ = ["export", "write"]
