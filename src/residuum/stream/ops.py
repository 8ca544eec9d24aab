"""What PyTorch's functions mean to a residual stream. PyTorch's names only: never a module's, never a model's."""

from functools import cache

# y = a + b, out of place and in place: where a residual connection may be. A difference is none: it compares.
SUM = frozenset({"add", "__add__", "__radd__", "add_", "__iadd__"})

# y = a + w (b − a), which is the sum (1 − w) a + w b.
LERP = frozenset({"lerp", "lerp_"})

# y = a + b ∘ c: the second addend exists only inside the call, and is made by the function named here.
FUSED_SUM = {
    "addcmul": "mul", "addcmul_": "mul", "addcdiv": "div", "addcdiv_": "div",
    "addmm": "matmul", "addmm_": "matmul", "baddbmm": "matmul", "baddbmm_": "matmul", "addmv": "matmul",
    "addmv_": "matmul",
}  # fmt: skip

# y = a with rows of b added in some places: the position of b among the arguments, and its name.
PARTIAL_SUM = {
    "index_add": (3, "source"), "index_add_": (3, "source"), "scatter_add": (3, "src"), "scatter_add_": (3, "src"),
    "index_put": (2, "values"), "index_put_": (2, "values"),
}  # fmt: skip

# A sum over what was stacked.
REDUCE = frozenset({"sum", "mean", "nansum"})

# Sums and differences.
ADD = SUM | {"sub", "__sub__", "__rsub__", "sub_", "__isub__", "rsub"}

# y = a · b: what scales and gates are made of.
MULTIPLY = frozenset(
    {
        "mul",
        "__mul__",
        "__rmul__",
        "mul_",
        "__imul__",
        "multiply",
        "div",
        "__truediv__",
        "div_",
        "true_divide",
        "divide",
    }
)

# The value that goes in comes out: another shape, type, place or memory, but no other number.
VIEW = frozenset(
    {
        "view", "reshape", "view_as", "reshape_as", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze",
        "transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "T", "mT", "H", "mH", "contiguous",
        "clone", "detach", "detach_", "alias", "to", "_to_copy", "type", "type_as", "float", "half", "double",
        "bfloat16", "cpu", "cuda", "requires_grad_", "squeeze_", "unsqueeze_", "transpose_", "data", "real",
        "masked_fill", "masked_fill_", "expand", "expand_as", "repeat", "repeat_interleave", "tile", "lift_fresh_copy",
    }
)  # fmt: skip

# What is asked of a tensor beside its value, and makes none.
ASIDE = frozenset({"_base", "grad", "_grad"})

# Of these the second tensor gives a shape, a type or a place, and no number.
LIKE = frozenset({"type_as", "view_as", "reshape_as", "expand_as", "to", "sum_to_size"})

# A part of the value comes out, or its entries in another order.
PART = frozenset(
    {
        "__getitem__", "slice", "select", "narrow", "chunk", "split", "split_with_sizes", "tensor_split", "unbind",
        "index", "index_select", "gather", "take_along_dim", "masked_select", "roll", "flip", "pad", "unfold",
        "constant_pad_nd", "diagonal",
    }
)  # fmt: skip

# Several values come out side by side, or one in some places and another in the rest.
JOIN = frozenset(
    {
        "cat", "concat", "concatenate", "stack", "hstack", "vstack", "__setitem__", "where", "masked_scatter",
        "masked_scatter_", "scatter", "scatter_", "index_copy", "index_copy_", "slice_scatter",
    }
)  # fmt: skip

# Products with a matrix, by which even a buffer acts as a weight.
MATMUL = frozenset(
    {
        "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "einsum", "addmm", "baddbmm", "bilinear", "mv",
        "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "tensordot", "inner",
        "dot", "_int_mm", "_scaled_mm", "scaled_mm", "_grouped_mm", "grouped_mm",
    }
)  # fmt: skip

# Products by which parallel streams are mixed.
MIX_STREAMS = frozenset({"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "baddbmm", "einsum", "tensordot"})

_POOLING = frozenset(
    f"{kind}_pool{n}d" for kind in ("avg", "max", "lp", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)
)
_FOURIER = frozenset(
    f"fft_{kind}{n}" for kind in ("fft", "ifft", "rfft", "irfft") for n in ("", "2", "n")
) | {"fft_hfft", "fft_ihfft"}  # fmt: skip

# Mixing of entries that needs no weight.
MIX = _POOLING | _FOURIER

# Several entries become one: a module's pooling, or one written out by hand.
POOL = _POOLING | {"max", "amax", "mean"}

# One entry becomes several: what merges a coarse map into a fine one.
UPSAMPLE = frozenset({"interpolate", "upsample", "upsample_nearest", "upsample_bilinear", "pixel_shuffle"})

# Limits, which leave what lies between them.
CLAMP = frozenset({"clamp", "clamp_", "clip", "clip_", "hardtanh", "hardtanh_"})

# Functions onto the interval from 0 to 1: what gates are made with.
GATE = frozenset({"sigmoid", "sigmoid_", "hardsigmoid", "softmax"})

DROPOUT = frozenset(
    {
        "dropout", "dropout_", "native_dropout", "alpha_dropout", "dropout1d", "dropout2d", "dropout3d",
        "feature_dropout", "feature_alpha_dropout",
    }
)  # fmt: skip

# Where random numbers come from: a product with them is dropout written out by hand, such as stochastic depth.
RANDOM = frozenset(
    {
        "rand", "rand_like", "randn", "randn_like", "randint", "bernoulli", "bernoulli_", "uniform_", "normal_",
        "multinomial", "exponential_",
    }
)  # fmt: skip

# Noise: a product with it is a draw from a distribution, and nothing that is written.
NOISE = frozenset({"randn", "randn_like", "normal", "normal_"})

# Functions with a name like a normalisation's that are none: they measure, draw or reparametrise.
_NO_NORM = frozenset(
    {
        "norm", "vector_norm", "matrix_norm", "linalg_norm", "linalg_vector_norm", "linalg_matrix_norm",
        "normal", "normal_", "renorm", "renorm_", "log_normal_", "trunc_normal_", "_weight_norm", "norm_except_dim",
        "frobenius_norm", "nuclear_norm", "is_normal",
    }
)  # fmt: skip


@cache
def is_norm(op: str) -> bool:
    """A function that is a normalisation by itself, PyTorch's (`layer_norm`) or a kernel's (`LigerRMSNormFunction`).

    One written out by hand is recognised in normalisation.py.
    """
    return ("norm" in op.lower() or op == "normalize") and op not in _NO_NORM


@cache
def is_fused_add_norm(op: str) -> bool:
    """A kernel that adds the write to the skip and normalises the sum in one call; its name says so."""
    name = op.lower()
    return is_norm(op) and any(word in name for word in ("add", "residual", "skip"))


@cache
def may_add(op: str) -> bool:
    """Whether a call of this function may be a residual connection."""
    return op in SUM | LERP | REDUCE or op in FUSED_SUM or op in PARTIAL_SUM or is_fused_add_norm(op)


# What a hand-written normalisation takes its statistic with.
STATISTIC = frozenset({"mean", "var", "std", "var_mean", "std_mean", "norm", "vector_norm", "sum"})

# Functions whose result holds nothing of their tensor argument but its shape.
SHAPE_ONLY = frozenset(
    {
        "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like",
        "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor",
    }
)  # fmt: skip

# Elementwise arithmetic: with a weight of no larger shape it shifts or scales, and is no branch by itself.
ELEMENTWISE = ADD | MULTIPLY | LERP | {"addcmul", "addcdiv", "pow", "__pow__", "maximum", "minimum", "clamp", "prelu"}

# The value comes out, whole, in part, or beside others: no weight changes it here.
CARRY = VIEW | PART | JOIN | DROPOUT

# Reading rows of a table makes an activation, whatever the indices come from.
LOOKUP = frozenset({"embedding", "embedding_bag"})


def writes_in_place(name: str) -> bool:
    """PyTorch's convention: `add_`, `__iadd__` and `__setitem__` overwrite their first argument."""
    if name == "__setitem__":
        return True
    if name.startswith("__"):
        return name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
    return name.endswith("_")
