"""The packed decoder in plain NumPy: what `kernels.py` computes, to be read beside it, and its test."""

from __future__ import annotations

from collections.abc import Sequence
from math import erf

import numpy as np
from numpy.typing import NDArray

from residuum.model.positions import RotaryPositions
from residuum.packed.weights import MATRICES, Packed

Floats = NDArray[np.float32]


def scores(packed: Packed, tokens: Sequence[int]) -> Floats:
    """Scores [pos, vocab] of the token after each of these. The products of ternary maps are exact, in int32."""
    config, arrays = packed.config, packed.arrays
    n, d_head, share = len(tokens), config.d_head, config.n_heads // config.kv_heads
    normalise = layer_norm if config.norm == "layernorm" else rms_norm
    angles = None
    if config.positions == "rotary":
        rotary = RotaryPositions(config.context, d_head, config.rotary_base)
        angles = rotary.cos[:n, None].numpy(), rotary.sin[:n, None].numpy()

    def linear(name: str, layer: int, x: Floats) -> Floats:
        """x̂ Ŵᵀ, without the rows that are padding; as `BitLinear`."""
        weight = unpacked(arrays[name][layer])[:, : x.shape[1]]
        levels, step = eight_bits(x)
        sums = levels.astype(np.int32) @ weight.T.astype(np.int32)
        return sums.astype(np.float32) * (step * arrays["step"][layer, MATRICES.index(name)])

    def heads(x: Floats) -> Floats:
        return x[:, : x.shape[1] // d_head * d_head].reshape(n, -1, d_head)

    x = (arrays["embedding"].astype(np.float32) * arrays["embedding_step"][:, None])[list(tokens)]
    if config.positions != "rotary":
        x = x + arrays["positions"][:n]
    for layer in range(config.n_layers):
        read = normalise(x, arrays["attention_norm"][layer], config.norm_eps)
        q = heads(linear("q", layer, read)[:, : config.d_model])
        k, v = (heads(linear(name, layer, read)[:, : config.kv_heads * d_head]) for name in ("k", "v"))
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        mixed = attend(q, k.repeat(share, axis=1), v.repeat(share, axis=1)).reshape(n, -1)
        read = rms_norm(mixed, arrays["out_norm"][layer], config.norm_eps)
        x = x + linear("out", layer, read)[:, : config.d_model]
        read = normalise(x, arrays["feedforward_norm"][layer], config.norm_eps)
        up = linear("up", layer, read)
        hidden = (
            act(config.activation, linear("gate", layer, read)) * up if config.gated else act(config.activation, up)
        )
        read = rms_norm(hidden[:, : config.ff_width], arrays["down_norm"][layer], config.norm_eps)
        x = x + linear("down", layer, read)[:, : config.d_model]
    head, step = ("embedding", "embedding_step") if config.head == "tied" else ("head", "head_step")
    last = normalise(x, arrays["final_norm"], config.norm_eps)
    return last @ arrays[head].T.astype(np.float32) * arrays[step]


def unpacked(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """uint8 [rows / 4, columns] → int8 [rows, columns] of −1, 0, 1."""
    return np.concatenate([packed >> 2 * i & 3 for i in range(4)]).astype(np.int8) - np.int8(1)


def eight_bits(x: Floats) -> tuple[NDArray[np.int8], Floats]:
    """x ≈ levels · step, step = max|x| / 127 of each row: as `model/quantise.py`."""
    largest = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-5))
    return np.rint(x * (np.float32(127) / largest)).astype(np.int8), largest / np.float32(127)


def rms_norm(x: Floats, gain: Floats, eps: float) -> Floats:
    """x · gain / √(mean(x²) + ε); without gains x."""
    return x if not gain.size else x / np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(eps)) * gain


def layer_norm(x: Floats, gain: Floats, eps: float) -> Floats:
    """The same once the mean is taken off."""
    return rms_norm(x - x.mean(-1, keepdims=True), gain, eps)


def rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Entries i and i + d_head / 2 of each head turned by their place's angle."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)


def attend(q: Floats, k: Floats, v: Floats) -> Floats:
    """softmax(q kᵀ / √d_head) v of each head over the places up to its own. Shapes: [pos, heads, d_head]."""
    weights = np.einsum("thd,shd->hts", q, k) / np.sqrt(np.float32(q.shape[-1]))
    weights = np.where(np.tri(len(q), dtype=bool), weights, -np.inf)
    weights = np.exp(weights - weights.max(-1, keepdims=True))
    return np.einsum("hts,shd->thd", weights / weights.sum(-1, keepdims=True), v)


def act(name: str, x: Floats) -> Floats:
    """The non-linearity that `ModelConfig.activation` names, of the gate where there is one."""
    if name == "swiglu":
        return x / (1 + np.exp(-x))
    if name == "gelu":
        return np.float32(0.5) * x * (1 + np.vectorize(erf, "f")(x / np.sqrt(np.float32(2))))
    positive = np.maximum(x, np.float32(0))
    return positive if name == "relu" else positive * positive
