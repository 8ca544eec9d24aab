"""Target: a program saved by `torch.export.save`, read without running anything that the file brings along.

`torch.export.load` unpickles and evaluates parts of the file; so the archive is looked through first, and what would do
more than describe a graph of PyTorch's own operators and hold plain tensors is refused. See
docs/decisions/0004-exported-programs-are-read-as-data.md.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from residuum.audit.targets.built import Built
from residuum.errors import InputError

# Where PyTorch's archive puts the graph, the tensors and the example inputs.
GRAPH = re.compile(r"models/[^/]+\.json")
TENSORS = re.compile(r"data/(weights|constants)/[^/]*_config\.json")
EXAMPLES = re.compile(r"data/sample_inputs/[^/]+\.pt")
HARMLESS = re.compile(
    r"data/(weights/weight_\d+|constants/tensor_\d+)|extra/.*|archive_(format|version)|byteorder|version"
    r"|\.data/(version|serialization_id)|\.format_version|\.storage_alignment|data/executorch/.*|module_info\.json"
)
OPERATOR = re.compile(r"torch\.ops\.(aten|prims|higher_order)\.\w+(\.\w+)?|_operator\.\w+|math\.\w+")
SYMBOL = re.compile(
    r"[suz]f?\d+|u\d+|True|False|oo|int_oo|Max|Min|Mod|Eq|Ne|Ge|Gt|Le|Lt|And|Or|Not|Abs|Pow|ceiling|floor|sqrt"
    r"|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural"
    r"|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt|RoundToInt"
    r"|RoundDecimal|ToFloat|Identity|Symbol|Integer|Add|Mul|Rational|Float|Equality|Unequality|Piecewise"
    r"|GreaterThan|LessThan|StrictGreaterThan|StrictLessThan|Relational"
)
ARITHMETIC = (
    ast.Expression, ast.expr_context, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop,
    ast.cmpop, ast.Tuple,
)  # fmt: skip


def from_file(path: Path) -> Built:
    """The program with the example inputs it was saved with. Raises `InputError` for what cannot be read as data."""
    _refuse_code(path)
    noise = logging.getLogger("torch.export")
    level = noise.level
    try:
        noise.setLevel(logging.CRITICAL)
        program = torch.export.load(path)
        model = Exported(program.module(check_guards=False))
    except Exception as error:
        raise InputError(
            f"{path} cannot be read by torch {torch.__version__}: {type(error).__name__}: {error}: export it again"
        ) from error
    finally:
        noise.setLevel(level)
    if program.example_inputs is None:
        return Built(model)
    args, kwargs = program.example_inputs
    return Built(model, (tuple(args), dict(kwargs)), ["an exported program"], "on the example inputs it was saved with")


class Exported(nn.Module):
    """An exported graph that runs as the code did which it was made from: in its modules, and at its lines.

    Both are written on each operation of the graph; without them every connection would stand in generated code.
    """

    def __init__(self, program: GraphModule) -> None:
        super().__init__()
        self._run = _AsWritten(self, program)
        self._inputs = [node.name for node in program.graph.nodes if node.op == "placeholder"]
        for name, parameter in program.named_parameters(remove_duplicate=False):
            self._place(name.rpartition(".")[0]).register_parameter(name.rpartition(".")[2], parameter)
        for name, buffer in program.named_buffers(remove_duplicate=False):
            self._place(name.rpartition(".")[0]).register_buffer(name.rpartition(".")[2], buffer)
        for node in program.graph.nodes:
            self._place(_module_of(node))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # Names that are the graph's own go in its order, whatever order they came in.
        named = {name: kwargs[name] for name in self._inputs if name in kwargs}
        return self._run.run(*pytree.tree_leaves((args, named if len(named) == len(kwargs) else kwargs)))

    def _place(self, path: str) -> nn.Module:
        place: nn.Module = self
        for part in path.split(".") if path else ():
            if part not in place._modules:
                place.add_module(part, _Scope())
            place = getattr(place, part) if part in place._modules else place
        return place


class _Scope(nn.Module):
    """Stands where a module of the original stood, and runs what ran in it."""

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


class _AsWritten(Interpreter):
    def __init__(self, outer: Exported, program: GraphModule) -> None:
        super().__init__(program)
        self._outer = [outer]  # in a list, or the module would hold itself as its own child
        self._lines: dict[str, Callable[..., Any]] = {}
        self._node: Node | None = None

    def run_node(self, n: Node) -> Any:
        path = _module_of(n)
        self._node = n
        if not path or n.op != "call_function":
            return super().run_node(n)
        return self._outer[0].get_submodule(path)(super().run_node, n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        trace = (self._node.stack_trace if self._node is not None else None) or ""
        if trace not in self._lines:
            self._lines[trace] = _at_line(trace)
        return self._lines[trace](target, args, kwargs)


def _at_line(trace: str) -> Callable[..., Any]:
    """A function that calls another, and that a stack shows at the innermost line of `trace` outside PyTorch."""
    lines = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', trace)
    lines = [line for line in lines if "/torch/" not in line[0] or "/torch/nn/modules/" in line[0]]
    if not lines:
        return _call
    file, number, name = lines[-1]
    code = _call.__code__.replace(co_filename=file, co_firstlineno=int(number) - 1, co_name=name, co_qualname=name)
    return types.FunctionType(code, {})


def _call(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _module_of(node: Node) -> str:
    """The path of the innermost module that an operation was called in."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return path.removeprefix("L__self__").removeprefix("L['self']").lstrip(".") if isinstance(path, str) else ""


def _refuse_code(path: Path) -> None:
    """Raises `InputError` for an archive that holds, or would have PyTorch make, anything but plain data."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            for name in names:
                if not any(known.fullmatch(name) for known in (GRAPH, TENSORS, EXAMPLES, HARMLESS)):
                    raise _refused(path, f"holds {name}, which is no graph and no plain tensor")
            for name, full in names.items():
                if TENSORS.fullmatch(name):
                    _check_tensors(path, json.loads(archive.read(full)))
                elif EXAMPLES.fullmatch(name):
                    _check_examples(path, archive.read(full))
                elif GRAPH.fullmatch(name):
                    _check_graph(path, json.loads(archive.read(full)))
            if not any(GRAPH.fullmatch(name) for name in names):
                raise InputError(f"{path} holds no exported program: write one with torch.export.save")
    except (zipfile.BadZipFile, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no program of torch.export, or damaged: {error}: export it again") from error


def _check_tensors(path: Path, content: dict[str, Any]) -> None:
    for name, entry in content["config"].items():
        if entry["use_pickle"] is not False:
            raise _refused(path, f"holds '{name}' as a pickle")


def _check_examples(path: Path, content: bytes) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        raise _refused(path, "holds example inputs that are more than tensors") from error


def _check_graph(path: Path, content: Any) -> None:
    for key, value in _entries(content):
        if key == "target" and isinstance(value, str) and not OPERATOR.fullmatch(value):
            raise _refused(path, f"calls {value}, which is none of PyTorch's own operators")
        if key == "expr_str" and not _is_size(value):
            raise _refused(path, f"computes a size by {value!r:.60}")


def _is_size(text: Any) -> bool:
    """Whether it is arithmetic of sizes as sympy writes it, such as Mul(Integer(2), Symbol('s23', integer=True))."""
    try:
        return all(map(_is_arithmetic, ast.walk(ast.parse(text, mode="eval"))))
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return False


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name)
    if isinstance(node, ast.Constant):  # a name in quotes is a symbol's, and still no more than a symbol if evaluated
        return not isinstance(node.value, str) or SYMBOL.fullmatch(node.value) is not None
    return isinstance(node, ARITHMETIC)


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from value.items()
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _refused(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} {why}: reading it could run code of its own: where you trust it, load it in a callable and audit "
        "package.module:callable"
    )
