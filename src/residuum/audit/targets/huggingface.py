"""Target: a Hugging Face folder, its config.json, or the id of a model on the hub. Needs the extra `hf`.

Weights come from safetensors alone, and no code that comes with a model is run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from residuum.audit.audit import counted
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
    if local:
        _check_table(Path(source))
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
    kind, missing = type(model).__name__, sorted(loading["missing_keys"])
    if not {name for name, _ in model.named_parameters()}.difference(missing):
        raise InputError(
            f"{source}: none of its weights belongs to {kind}: mend architectures or model_type ({config.model_type}) "
            "in its config"
        )
    lacking = f"warning: not in {source} and random: {counted(len(missing), 'weight')}, such as "
    notes = [lacking + missing[0]] if missing else []
    return Built(model, notes=[*notes, f"loaded as {kind} in {str(model.dtype).removeprefix('torch.')}"])


def _check_table(path: Path) -> None:
    file = path / CONFIG if path.is_dir() else path
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error}: write it anew with save_pretrained") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no table of settings: write it anew with save_pretrained")


def _class_of(config: Any, transformers: Any) -> Any:
    """The first of the config's architectures that transformers has."""
    names = getattr(config, "architectures", None)
    for name in names if isinstance(names, (list, tuple)) else ():
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
        if "ignore_mismatched_sizes" in words:
            raise InputError(f"{source}: its weights are of other sizes than the config says: mend it") from error
        if isinstance(error, KeyError):
            raise InputError(f"{source}: transformers knows no {error}, which its config names: mend it") from error
        first = words.split(". ")[0].removesuffix(".")
        raise InputError(f"{source}: its {part} cannot be read: {type(error).__name__}: {first:.300}") from error
