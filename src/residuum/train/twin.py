"""The full-precision twin, which says what ternary weights cost."""

from __future__ import annotations

from residuum.errors import InputError
from residuum.files import write_whole
from residuum.model import Transformer
from residuum.train.loop import Progress, Silent, train
from residuum.train.run_folder import RunFolder


def train_twin(folder: RunFolder, progress: Progress | None = None) -> Transformer:
    """Train the twin of the run `folder` in `folder.twin`, from its newest checkpoint or the start, to the last step.

    Tokens, the batch of every step and the first weights are the run's own; what differs is `Recipe.full_precision`'s.
    Raises `InputError` where text or code are no longer what the run was trained with, or its first weights were
    imported, which the twin's are not.
    """
    if "imported" in folder.made_with():
        raise InputError(f"{folder.path} began with imported weights, as no twin would: train one of a recipe's run")
    progress, twin = progress or Silent(), folder.twin
    with folder.locked():
        if not twin.recipe_file.exists():
            write_whole(twin.tokenizer_file, folder.tokenizer_file.read_bytes())
            twin.write_recipe(folder.recipe.full_precision(), folder.made_with()["data_fingerprint"])
        progress.note(f"the full-precision twin, at a learning rate of {twin.recipe.optim.lr:g}, in {twin.path}")
        return train(twin, twin.recipe, progress)
