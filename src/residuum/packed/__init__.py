"""Ternary models on packed weights: two bits a weight, one compiled function for a whole pass."""

from residuum.packed.decoder import PackedDecoder
from residuum.packed.difference import Difference, difference
from residuum.packed.file import PackedFile, load, save
from residuum.packed.weights import Packed, pack

__all__ = ["Difference", "Packed", "PackedDecoder", "PackedFile", "difference", "load", "pack", "save"]
