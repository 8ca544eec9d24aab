"""Target: a Hugging Face folder, its config.json, or the id of a model on the hub. Needs the extra `hf`.

Weights come from safetensors alone, and no code that comes with a model is run.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from residuum.audit.targets.built import Built
from residuum.errors import InputError

CONFIG = "config.json"


def is_config(path: Path) -> bool:
    """Whether `path` is a folder with a config.json, or such a file of any name."""
    return path.suffix == ".json" if path.is_file() else (path / CONFIG).is_file()


def from_folder(path: Path) -> Built:
    """The model that a folder holds, in the type it was saved in. Raises `InputError` if it cannot be loaded safely."""
    folder = path.parent if path.is_file() else path
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
            raise InputError(
                f"{folder} holds its weights in a pickle, which can run code as it is read: where you trust it, load "
                "it and write it again as safetensors with model.save_pretrained; or look at its --structure alone"
            )
        raise InputError(f"{folder} holds a config and no *.safetensors: give --structure to audit it without weights")
    return _loaded(str(folder), local=True)


def from_hub(name: str) -> Built:
    """The model of this id, from the local cache or the hub."""
    return _loaded(name, local=False)


def read_config(source: str, local: bool) -> tuple[Any, Callable[[Any], nn.Module]]:
    """The config, of a class that transformers itself knows, and what builds a model of random weights from it.

    That is the class the config names, else the bare model. Raises `InputError` for any other.
    """
    transformers = _transformers()
    with _quiet(transformers), _faults(source, "config"):
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=local)
    return config, _class_of(config, transformers) or transformers.AutoModel.from_config


def _loaded(source: str, local: bool) -> Built:
    transformers = _transformers()
    config, _ = read_config(source, local)
    loader = _class_of(config, transformers) or transformers.AutoModel
    with _quiet(transformers), _faults(source, "weights"):
        model, loading = loader.from_pretrained(
            source,
            trust_remote_code=False,
            local_files_only=local,
            use_safetensors=True,
            dtype="auto",
            output_loading_info=True,
        )
    model = model.eval()
    missing = sorted(loading["missing_keys"])
    random = f"; {len(missing)} weights are not in it and random, such as {missing[0]}" if missing else ""
    return Built(
        model, notes=[f"loaded as {type(model).__name__} in {str(model.dtype).removeprefix('torch.')}{random}"]
    )


def _class_of(config: Any, transformers: Any) -> Any:
    """The first of the config's architectures that transformers has."""
    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return None


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise InputError("a Hugging Face model takes the extra hf: pip install residuum[hf]") from None


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No bars and no advice while loading: what matters comes back as a note or an error."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _faults(source: str, part: str) -> Iterator[None]:
    """One line for whatever a damaged folder or an id out of reach makes the library raise."""
    try:
        yield
    except Exception as error:
        words = " ".join(str(error).split())
        if "trust_remote_code" in words or "execute" in words:
            raise InputError(
                f"{source}: its config asks for code of its own, which is not run: build the model in a callable that "
                "you trust, and audit package.module:callable"
            ) from error
        first = words.split(". ")[0].removesuffix(".")
        raise InputError(f"{source}: its {part} cannot be read: {type(error).__name__}: {first:.300}") from error
