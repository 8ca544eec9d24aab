"""A recipe: everything that decides a training run, as nested dataclasses, TOML files and command-line flags alike."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from residuum.engine import make_engine
from residuum.errors import InputError
from residuum.fields import check_fields, check_range
from residuum.model.config import ModelConfig
from residuum.model.residual import residual_of

FOLDER = Path(__file__).parent / "recipes"

ON_TOP = ("engine", "twin")
"""The keys of a recipe that belong to no section."""


@dataclass(frozen=True)
class RunConfig:
    """How long, how often, where."""

    dir: str | None = None
    """Folder of the run. None: runs/<recipe>, numbered if that is taken."""
    steps: int = 1000
    """Number of optimizer steps."""
    seed: int = 0
    """Seed of the initial weights, the batches and the dropout."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    eval_every: int = 200
    """Steps between evaluations on held-out text; each also writes a sample."""
    eval_tokens: int = 65536
    """How much held-out text an evaluation reads, in tokens."""
    sample_tokens: int = 120
    """Length of a sample, in tokens; 0 writes none."""
    checkpoint_every: int = 200
    """Steps between checkpoints; the last step always writes one."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps …; auto takes cuda where there is one, else the cpu."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the matrix products; auto takes bfloat16 on a cuda device that has it, else float32."""
    keep: str = "everything"
    """What the explicit engine keeps for its backward: everything; block-inputs, computing each block again; or every-K
    (every-4, say), the input of every K-th block only."""
    compile: bool = False
    """Whether the explicit engine's pass becomes one compiled graph. It takes a C++ compiler and half a minute at the
    start, and halves the time of a step that is all calls: a tiny model's."""

    def __post_init__(self) -> None:
        check_fields(self, "run")
        counts = ("steps", "log_every", "eval_every", "eval_tokens", "checkpoint_every", "keep_checkpoints")
        check_range(self, "run", 1, 2**53, counts)
        check_range(self, "run", 0, 2**32 - 1, ("seed", "sample_tokens"))
        if self.dir == "":
            raise InputError("run.dir is empty: give a folder, or leave it away")


@dataclass(frozen=True)
class DataConfig:
    """What text, cut into what tokens."""

    source: str = "stdlib"
    """stdlib (source of this Python's standard library), stdlib-names (names in it), arithmetic (sums of two numbers
    below 100, and products with a digit), a file, or a folder."""
    documents: Literal["auto", "file", "paragraph", "line"] = "auto"
    """The unit that is held out; auto: the files of a folder; the paragraphs, or else the lines, of a file."""
    held_out: float = 0.05
    """Share of the documents that is never trained on, chosen by a hash of each one's name."""
    answer: str | None = None
    """What ends the question in each document, '=' say. Only answers are then learned, and held-out questions asked:
    exact_match in metrics.jsonl is the share answered right to the last token (exact_match_by_kind: n+n, n*n, …)."""
    max_bytes: int | None = None
    """Read at most about this many bytes of text. None: all."""
    tokenizer: Literal["byte", "char", "bpe"] = "byte"
    """byte: 256 of them; char: the text's own characters; bpe: byte pairs merged by frequency."""
    vocab_size: int = 2048
    """Number of tokens of the bpe tokenizer."""

    def __post_init__(self) -> None:
        check_fields(self, "data")
        check_range(self, "data", 1, 2**53, ("max_bytes",))
        check_range(self, "data", 257, 10_000_000, ("vocab_size",))
        if self.answer == "":
            raise InputError("data.answer is empty: give what ends a question, or leave it away")
        if not self.source:
            raise InputError("data.source is empty: give stdlib, a file or a folder")
        if not 0 < self.held_out < 1:
            raise InputError(f"data.held_out is {self.held_out}: give a share between 0 and 1, such as 0.05")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    batch_size: int = 16
    """Sequences in one forward and backward pass."""
    accumulate: int = 1
    """Passes summed to one optimizer step."""
    lr: float = 1e-3
    """Peak learning rate."""
    min_lr: float = 1e-4
    """Learning rate at the last step, where it decays."""
    warmup: int = 100
    """Steps over which the learning rate rises from 0."""
    decay: Literal["cosine", "linear", "constant", "two-stage"] = "cosine"
    """How the learning rate falls after the warm-up. two-stage, for ternary weights: on a line from lr to min_lr, and
    from half of the steps on, on the line from second_lr, with no weight decay any more."""
    second_lr: float | None = None
    """Peak of the second line of two-stage. None: two thirds of lr, as in BitNet's published runs."""
    twin_lr: float | None = None
    """Peak learning rate of the full-precision twin (see twin), with min_lr in proportion. None: lr. The twin of a
    two-stage run decays along a cosine: two stages are for ternary weights."""
    weight_decay: float = 0.1
    """Decay of matrices, per unit of learning rate; vectors (biases, gains) never decay."""
    beta1: float = 0.9
    """Memory of the gradient's mean."""
    beta2: float = 0.95
    """Memory of the gradient's square."""
    clip: float = 1.0
    """Largest norm of the whole gradient; a larger one is scaled down. 0: never."""

    def __post_init__(self) -> None:
        check_fields(self, "optim")
        check_range(self, "optim", 1, 1_000_000, ("batch_size", "accumulate"))
        check_range(self, "optim", 0, 2**53, ("min_lr", "warmup", "weight_decay", "clip"))
        for name, rate in (("lr", self.lr), ("twin_lr", self.twin_lr)):
            if rate is not None and not rate > 0:
                raise InputError(f"optim.{name} is {rate}: give a number above 0")
        if self.decay != "constant" and self.min_lr > self.lr:
            raise InputError(f"optim.min_lr = {self.min_lr} is above optim.lr = {self.lr}: give a smaller one")
        if self.second_lr is not None and self.decay != "two-stage":
            raise InputError(
                "optim.second_lr is the second line of optim.decay = 'two-stage': leave it away, or set that"
            )
        if self.decay == "two-stage" and not self.min_lr <= self.second_peak < float("inf"):
            raise InputError(
                f"optim.second_lr = {self.second_peak:g} is below optim.min_lr = {self.min_lr:g}: give a larger one"
            )
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"optim.{name} is {getattr(self, name)}: give a number from 0 up to, not including, 1")

    @property
    def second_peak(self) -> float:
        """second_lr, or its default."""
        return self.lr * 2 / 3 if self.second_lr is None else self.second_lr


@dataclass(frozen=True)
class Recipe:
    """A whole training run. Raises `InputError` where a value cannot be."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: str = "autograd"
    """Way to the gradients: autograd, PyTorch's own; explicit, each one derived by hand and no graph; scalar, number by
    number in plain Python, for tiny models on the cpu."""
    twin: bool = False
    """Whether a full-precision twin of a ternary model is trained after it, on the same batches, in RUN/twin; the
    report shows both."""

    def __post_init__(self) -> None:
        if not isinstance(self.twin, bool):
            raise InputError(f"twin is {self.twin!r}: give true or false")
        if self.twin and self.model.linear == "float":
            raise InputError(
                "twin = true is nothing for model.linear = 'float', which is full precision: leave --twin away, or set "
                "model.linear to ternary"
            )
        residual_of(self.model)
        if not self.model.causal or self.model.head == "none":
            raise InputError("model.causal = true and a head are what predicting the next token takes: set both")
        make_engine(self.engine, self.run.keep, self.run.compile).check(self.model)
        if self.engine == "scalar" and self.run.precision == "bfloat16":
            raise InputError(
                "run.precision = 'bfloat16' is nothing for engine = 'scalar', which computes in float64 whatever is "
                "asked: leave run.precision away, or set engine to autograd"
            )
        if self.engine == "scalar" and self.run.device not in ("auto", "cpu"):
            raise InputError(
                f"run.device = '{self.run.device}' is nothing for engine = 'scalar', which is plain Python: "
                "leave run.device away, or set engine to autograd"
            )
        if self.twin:
            self.full_precision()  # its own checks

    def full_precision(self) -> Recipe:
        """The twin's recipe: the same but for `model.linear`, the learning rate, and two stages, made for ternary."""
        optim = self.optim
        if optim.decay == "two-stage":
            optim = dataclasses.replace(optim, decay="cosine", second_lr=None)
        if optim.twin_lr is not None:
            low = optim.twin_lr * (optim.min_lr / optim.lr)
            optim = dataclasses.replace(optim, lr=optim.twin_lr, min_lr=low, twin_lr=None)
        return dataclasses.replace(self, twin=False, optim=optim, model=dataclasses.replace(self.model, linear="float"))


def load_recipe(name: str) -> Recipe:
    """The recipe in a TOML file, or a built-in one by name. Raises `InputError` for a file or key at fault."""
    built_in = sorted(path.stem for path in FOLDER.glob("*.toml"))
    if not name:
        raise InputError(f"the recipe's name is empty: give {', '.join(built_in)}, or the path of a TOML file")
    path = FOLDER / f"{name}.toml" if name in built_in else Path(name)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"no recipe '{name}': choose {', '.join(built_in)}, or give the path of a TOML file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"recipe {path}: {getattr(error, 'strerror', None) or error}") from error
    except RecursionError:
        raise InputError(f"recipe {path}: values are nested too deeply") from None
    content.pop("made_with", None)  # what a run's own recipe.toml says of versions and data
    return recipe_from(content, f"recipe {path}")


def recipe_from(content: dict[str, Any], where: str) -> Recipe:
    """The recipe that nested sections and keys describe. Raises `InputError`, which begins with `where`."""
    try:
        return _build(Recipe, content, where, "")
    except OverflowError:
        raise InputError(f"{where}: a number has more digits than a float can hold") from None


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Engine and twin, and sections and their keys, as TOML holds them: a None is left out."""
    content = dataclasses.asdict(recipe, dict_factory=lambda pairs: {k: v for k, v in pairs if v is not None})
    return {key: content.pop(key) for key in ON_TOP} | content


def _build(kind: Any, content: dict[str, Any], where: str, prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in content.items():
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1)
            mend = f"did you mean '{prefix}{close[0]}'?" if close else f"it may hold {', '.join(hints)}"
            if key in ON_TOP:  # TOML gives a key to the section above it
                mend = f"write {key} on top of the file, above the first section"
            raise InputError(f"{where}: no key '{prefix}{key}': {mend}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise InputError(f"{where}: '{prefix}{key}' is a section: write [{prefix}{key}] and its keys below")
            value = _build(hints[key], value, where, f"{prefix}{key}.")
        values[key] = float(value) if hints[key] is float and type(value) is int else value
    try:
        return kind(**values)
    except InputError as error:
        raise error if str(error).startswith(where) else InputError(f"{where}: {error}") from None
