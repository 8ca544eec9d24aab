"""Inputs for a model that came without: from its config, the names of forward's arguments and its first layers.

Always the same ones. A config is read by its fields' names alone; no library is asked for.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from residuum.audit.targets.shrink import integers, role_of
from residuum.errors import InputError

BATCH, LENGTH, IMAGE, SAMPLES, FRAMES = 2, 8, 64, 16_000, 256
# Tokens are drawn from the first so many: no vocabulary is larger, and a config may say any number.
LARGEST = 10_000_000

TOKENS = ("input_ids", "decoder_input_ids", "tokens", "idx", "ids", "src", "tgt", "source", "target")
Inputs = dict[str, Any]


def make_inputs(model: nn.Module) -> Iterator[Inputs]:
    """Inputs to try in turn: what the model's main input may look like, the likeliest first.

    Raises `InputError`, naming the argument of forward, where nothing is known of one that must be given.
    """
    given, required, anything = _arguments(model)
    if not given:
        raise InputError(f"{type(model).__name__} names no input: {_how('NAME')}")
    main = getattr(model, "main_input_name", None)
    main = main if main in given else given[0]
    maker = _Maker(model, main)
    found = maker.candidates(main)
    if not found:
        raise InputError(f"no inputs can be made for {type(model).__name__}: {_how(main)}")
    wanted = {*required, *(name for name in maker.always if maker.candidates(name))}
    others = [name for name in given if name != main and name in wanted]
    unknown = [name for name in others if not maker.candidates(name)]
    if unknown:
        raise InputError(
            f"nothing is known of the argument '{unknown[0]}' of {type(model).__name__}: {_how(unknown[0])}"
        )
    rest: Inputs = {name: maker.candidates(name)[0] for name in others}
    for values in found:
        yield {main: values, **rest}
    if "use_cache" in given or (anything and hasattr(maker.config, "use_cache")):
        rest["use_cache"] = False  # not every pattern of layers has a cache that works; for one pass it is of no use
        for values in found:
            yield {main: values, **rest}
    # Towers side by side need an input each, though their signature calls every one optional.
    towers = {name: maker.candidates(name)[0] for name in given if name in _TOWERS and maker.candidates(name)}
    if len(towers) > 1 and len(others) + 1 < len(towers):
        yield {**towers, **rest}


def describe(inputs: Inputs) -> str:
    """What was made, for a note."""
    return ", ".join(
        f"{name} {tuple(value.shape)} of {str(value.dtype)[6:]}"
        for name, value in inputs.items()
        if isinstance(value, Tensor)
    )


_TOWERS = ("input_ids", "pixel_values", "input_features", "input_values")


def _how(name: str) -> str:
    return (
        "return (module, inputs) from a callable, or give a file with --inputs, such as "
        f'{{"{name}": {{"shape": [2, 8], "dtype": "int64", "high": 100}}}}'
    )


def _arguments(model: nn.Module) -> tuple[list[str], list[str], bool]:
    """The names that forward can be given, those that it must be given, and whether it takes any name at all."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p.name for p in named if p.default is p.empty]
    return [p.name for p in named], required, any(p.kind is p.VAR_KEYWORD for p in parameters)


class _Maker:
    """Values for forward's arguments. `always` are the optional ones that are given all the same."""

    def __init__(self, model: nn.Module, main: str) -> None:
        self.config = getattr(model, "config", None)
        self.always = {"decoder_input_ids", "bbox", "spatial_shapes", "pixel_attention_mask"}
        self._main = main
        self._layers = list(model.modules())
        self._generator = torch.Generator().manual_seed(0)
        self._known: dict[str, list[Tensor]] = {}
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        positions = self._field("n_positions", "max_position_embeddings", "max_target_positions")
        self._length = min(LENGTH, positions) if isinstance(positions, int) else LENGTH
        self._place: dict[str, Any] = {"device": like.device, "dtype": like.dtype}

    def candidates(self, name: str) -> list[Tensor]:
        if name not in self._known:
            self._known[name] = list(self._make(name))
        return self._known[name]

    def _make(self, name: str) -> Iterator[Tensor]:
        makers: dict[str, Callable[[], Iterator[Tensor]]] = {
            "pixel_values": self._pixels,
            "pixel_values_videos": self._videos,
            "input_features": self._features,
            "input_values": self._waves,
            "decoder_input_values": self._spectra,
            "bbox": self._boxes,
            "spatial_shapes": self._grids,
            "pixel_attention_mask": self._present,
            "inputs": self._any,
        }
        if name in TOKENS and (self._first(nn.Embedding) or self._field("vocab_size")):
            yield from self._tokens(name)
        elif name in makers:
            yield from makers[name]()
        elif name == self._main:
            yield from self._by_layer()

    def _tokens(self, name: str = "") -> Iterator[Tensor]:
        decoder = name.startswith("decoder")
        own = self._field("decoder_vocab_size") if decoder else getattr(self.config, "vocab_size", None)
        nested = getattr(getattr(self.config, "decoder", None), "vocab_size", None) if decoder else None
        tables = [layer.num_embeddings for layer in self._layers if isinstance(layer, nn.Embedding)]
        size = own or nested or self._field("vocab_size") or next((rows for rows in tables if rows), 0)
        special = {number for field, number in integers(self.config) if role_of(field) == "id"}
        size = min(size, LARGEST)
        if size <= len({number for number in special if 0 <= number < size}):
            return
        shapes: list[tuple[int, ...]] = [(BATCH, self._length)]
        books = self._field("num_codebooks")
        if books:  # several tokens at a place: stacked in the batch, or last
            shapes += [(BATCH * books, self._length), (BATCH, self._length, books + 1)]
        for shape in shapes:
            tokens = torch.randint(size, shape, generator=self._generator)
            while (reserved := torch.isin(tokens, torch.tensor(sorted(special)))).any():
                tokens[reserved] = torch.randint(size, (int(reserved.sum()),), generator=self._generator)
            yield tokens.to(self._place["device"])

    def _pixels(self) -> Iterator[Tensor]:
        conv = self._first(nn.Conv2d)
        cube = self._first(nn.Conv3d)
        sides = self._field("image_size", "input_size", "pretrain_image_size")
        height, width = sides if isinstance(sides, (list, tuple)) else (sides or IMAGE, sides or IMAGE)
        channels = self._field("num_channels", "in_channels", "in_chans")
        channels = channels if isinstance(channels, int) else (conv.in_channels if conv is not None else 3)
        side = self._grid()
        if side and conv is None:  # images of any shape come cut into patches already
            yield self._random(BATCH, side * side, channels * self._field("patch_size") ** 2)
        if cube is not None or self._field("num_frames"):
            yield self._random(BATCH, self._field("num_frames") or 4, channels, height, width)
        yield self._random(BATCH, channels, height, width)
        if conv is not None and conv.in_channels != channels:
            yield self._random(BATCH, conv.in_channels, height, width)

    def _videos(self) -> Iterator[Tensor]:
        side = self._field("image_size", "crop_size") or IMAGE
        yield self._random(BATCH, self._field("num_frames", "frames_per_clip") or 4, 3, side, side)

    def _features(self) -> Iterator[Tensor]:
        names = ("input_feat_per_channel", "feature_projection_input_dim", "num_mel_bins", "input_dim", "mel_bins")
        width = self._field(*names, "input_size", "feature_size", "n_mels") or 80
        source = self._field("max_source_positions")
        conv = self._first(nn.Conv1d)
        by_channel = self._random(BATCH, width, 2 * source if source else FRAMES)
        by_frame = self._random(BATCH, FRAMES, width)
        yield from (by_channel, by_frame) if conv is not None and conv.in_channels == width else (by_frame, by_channel)
        linear = self._first(nn.Linear)
        if linear is not None:  # several frames are stacked to one
            yield self._random(BATCH, FRAMES, linear.in_features)

    def _waves(self) -> Iterator[Tensor]:
        if self._field("num_mel_bins") and self._field("max_length") and self._first(nn.Conv2d) is not None:
            yield from self._spectra()
        yield self._random(BATCH, SAMPLES)
        yield self._random(BATCH, 1, SAMPLES)

    def _spectra(self) -> Iterator[Tensor]:
        length = self._field("max_length")
        yield self._random(
            BATCH, length if isinstance(length, int) and length > 20 else FRAMES, self._field("num_mel_bins") or 80
        )

    def _boxes(self) -> Iterator[Tensor]:
        yield torch.tensor([0, 0, 10, 10], device=self._place["device"]).expand(BATCH, self._length, 4)

    def _grid(self) -> int:
        """How many patches a side of an image has where the config counts them; else 0."""
        return math.isqrt(self._field("num_patches") or 0)

    def _grids(self) -> Iterator[Tensor]:
        if self._grid():
            yield torch.full((BATCH, 2), self._grid(), device=self._place["device"])

    def _present(self) -> Iterator[Tensor]:
        if self._grid():
            yield torch.ones(BATCH, self._grid() ** 2, dtype=torch.long, device=self._place["device"])

    def _any(self) -> Iterator[Tensor]:
        if self._first(nn.Embedding) is not None:
            yield from self._tokens()
        yield from self._pixels()
        yield from self._waves()

    def _by_layer(self) -> Iterator[Tensor]:
        """For what its name does not tell: what the first layer with an unmistakable input reads."""
        for layer in self._layers:
            if isinstance(layer, nn.Embedding) and layer.num_embeddings:
                yield from self._tokens()
            elif isinstance(layer, nn.Conv2d):
                yield self._random(BATCH, layer.in_channels, IMAGE, IMAGE)
            elif isinstance(layer, nn.Conv1d):
                yield self._random(BATCH, layer.in_channels, SAMPLES if layer.in_channels == 1 else FRAMES)
            else:
                continue
            return

    def _first(self, kind: type[Any]) -> Any:
        return next((layer for layer in self._layers if isinstance(layer, kind)), None)

    def _field(self, *names: str) -> Any:
        """The first of these fields that the config has, its own before those of the configs below it."""
        pending = [self.config]
        while pending:
            config = pending.pop(0)
            if config is None:
                continue
            for name in names:
                value = getattr(config, name, None)
                if value and not isinstance(value, (str, dict, bool)):
                    return value
            pending += [inner for inner in vars(config).values() if hasattr(inner, "model_type")]
        return None

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator).to(**self._place)
