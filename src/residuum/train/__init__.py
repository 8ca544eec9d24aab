"""Train a Transformer on text: recipes, data, the loop, checkpoints, and the folder that a run is."""

from residuum.train.loop import train
from residuum.train.recipe import Recipe, load_recipe
from residuum.train.run_folder import RunFolder, load
from residuum.train.twin import train_twin

__all__ = ["Recipe", "RunFolder", "load", "load_recipe", "train", "train_twin"]
