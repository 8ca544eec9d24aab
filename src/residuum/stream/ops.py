"""What PyTorch's functions mean to a residual stream. PyTorch's names only: never a module's, never a model's."""

# y = a + b, out of place and in place: where a residual connection may be. A difference is none: it compares.
SUM = frozenset({"add", "__add__", "__radd__", "add_", "__iadd__"})

# y = a + w (b − a), which is the sum (1 − w) a + w b.
LERP = frozenset({"lerp", "lerp_"})

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
        "view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose",
        "permute", "movedim", "swapaxes", "swapdims", "t", "T", "mT", "contiguous", "clone", "detach", "alias", "to",
        "type", "type_as",
        "float", "half", "double", "bfloat16", "cpu", "cuda", "requires_grad_", "squeeze_", "unsqueeze_", "data",
        "masked_fill", "masked_fill_", "expand", "expand_as",
    }
)  # fmt: skip

DROPOUT = frozenset(
    {"dropout", "dropout_", "alpha_dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout"}
)

# Functions that are a normalisation by themselves; one written out by hand is recognised in normalisation.py.
NORM = frozenset(
    {
        "layer_norm",
        "native_layer_norm",
        "rms_norm",
        "_fused_rms_norm",
        "group_norm",
        "batch_norm",
        "instance_norm",
        "normalize",
    }
)

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
ELEMENTWISE = ADD | MULTIPLY | LERP | {"addcmul", "addcdiv", "pow", "__pow__", "where", "maximum", "minimum"}

# Reading rows of a table makes an activation, whatever the indices come from.
LOOKUP = frozenset({"embedding", "embedding_bag", "index_select"})


def writes_in_place(name: str) -> bool:
    """PyTorch's convention: `add_`, `__iadd__` and `__setitem__` overwrite their first argument."""
    if name == "__setitem__":
        return True
    if name.startswith("__"):
        return name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
    return name.endswith("_")
