from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import residuum
from residuum.audit.target import audit_target
from residuum.audit.targets.exported import _is_size
from residuum.errors import InputError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)
        self.register_buffer("scale", torch.full((6,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.linear(self.norm(x)).tanh()


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(11, 6), nn.ModuleList(Block() for _ in range(3))

    def forward(self, ids: Tensor, *, shift: Tensor, gain: Tensor) -> Tensor:
        x = self.embed(ids) * gain + shift
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "stack.pt2"
    inputs = {"shift": torch.zeros(6), "gain": torch.ones(6)}
    torch.export.save(torch.export.export(Stack(), (torch.arange(10).view(2, 5),), inputs), path)
    return path


@pytest.mark.parametrize("structure", [False, True])
def test_connections_stand_where_the_code_did(program: Path, structure: bool) -> None:
    audit = audit_target(str(program), structure=structure)
    code = residuum.trace(Stack(), torch.arange(10).view(2, 5), shift=torch.zeros(6), gain=torch.ones(6))
    assert len(list(audit.graph.residuals)) == 3
    for exported, written in zip(audit.graph.residuals, code.residuals, strict=True):
        for name in ("module", "branch", "kind", "placement", "shape"):
            assert getattr(exported, name) == getattr(written, name)
        assert (exported.source.file, exported.source.line) == (written.source.file, written.source.line)
    assert "on the example inputs it was saved with" in audit.notes


def test_gradients_are_those_of_the_code(program: Path) -> None:
    audit = audit_target(str(program))
    assert all(m.backward is not None and m.backward.identity > 0 for m in audit.flow.all_measured)
    assert audit.flow.without_gradient == []


def test_other_inputs_by_the_graphs_names(program: Path, tmp_path: Path) -> None:
    file = tmp_path / "inputs.json"
    file.write_text(json.dumps({"gain": [1.0] * 6, "ids": [[1, 2, 3, 4, 5]] * 2, "shift": [0.0] * 6}))
    for structure in (False, True):
        audit = audit_target(str(program), structure, str(file))
        assert len(list(audit.graph.residuals)) == 3
        assert audit.notes == ["an exported program"]


def test_sizes_that_stay_open(tmp_path: Path) -> None:
    batch, path = torch.export.Dim("b", max=64), tmp_path / "open.pt2"
    model = nn.Sequential(Block(), nn.Flatten(0, 1), Block())  # the second sees 2 · b
    torch.export.save(torch.export.export(model, (torch.ones(5, 2, 6),), dynamic_shapes=({0: batch},)), path)
    with zipfile.ZipFile(path) as archive:
        graph = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("models/model.json"))
    assert "Symbol('s" in graph and "Mul(" in graph
    assert [r.shape for r in audit_target(str(path)).graph.residuals] == [(5, 2, 6), (10, 6)]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("Mul(Integer(2), Symbol('s23', positive=True, integer=True))", True),
        ("Max(1, 2*s0 - u1)", True),
        ("Ge(Symbol('s0', integer=True), 2) & ~Eq(s1, 4)", True),
        ("__import__('os')", False),
        ("Symbol('__import__')", False),
        ("Integer.__class__", False),
        ("(lambda: 1)()", False),
        ("Symbol('s1')()", False),
        ("[s0 for s0 in s1]", False),
        ("s0 if s1 else s2", False),
        ("s0(", False),
        ("(" * 10_000, False),
        (5, False),
    ],
)
def test_what_is_a_size(text: object, size: bool) -> None:
    assert _is_size(text) is size


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None], extra: dict[str, bytes] | None = None) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(entries)).split("/")[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            if (changed := change(name, content)) is not None:
                archive.writestr(name, changed)
        for name, content in (extra or {}).items():
            archive.writestr(f"{root}/{name}", content)


def replaced(old: bytes, new: bytes, suffix: str) -> Callable[[str, bytes], bytes]:
    return lambda name, content: content.replace(old, new) if name.endswith(suffix) else content


def pickled(ran: Path) -> bytes:
    """A pickle that says so if it is ever read."""

    class Spy:
        def __reduce__(self):
            return Path.touch, (ran,)

    stored = io.BytesIO()
    torch.save(Spy(), stored)
    return stored.getvalue()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("examples", "example inputs that are more than tensors"),
        ("weights", "as a pickle"),
        ("legacy weights", "no graph and no plain tensor"),
        ("object", "no graph and no plain tensor"),
        ("compiled", "no graph and no plain tensor"),
        ("list", "or damaged: list indices"),
        ("number", "or damaged: 'int' object"),
        ("function", "calls torch.load, which is none of PyTorch's own operators"),
        ("expression", "computes a size by"),
    ],
)
def test_what_could_run_code_is_refused(part: str, message: str, program: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    spy = pickled(ran)
    keep = lambda name, content: content  # noqa: E731
    changes = {
        "examples": (lambda name, content: spy if "sample_inputs" in name else content, {}),
        "weights": (replaced(b'"use_pickle": false', b'"use_pickle": true', "weights_config.json"), {}),
        "list": (lambda name, content: b"[]" if name.endswith("weights_config.json") else content, {}),
        "number": (
            lambda name, content: b'{"config": {"a": 5}}' if name.endswith("weights_config.json") else content,
            {},
        ),
        "legacy weights": (keep, {"data/weights/model.pt": spy}),
        "object": (keep, {"data/constants/opaque_obj_0": spy}),
        "compiled": (keep, {"data/aotinductor/model/model.so": b""}),
        "function": (replaced(b"torch.ops.aten.tanh.default", b"torch.load", "models/model.json"), {}),
        "expression": (
            replaced(
                b'{"as_int": 6}', b'{"as_expr": {"expr_str": "__import__(\'os\').getcwd()"}}', "models/model.json"
            ),
            {},
        ),
    }
    rewrite(program, *changes[part])
    with pytest.raises(InputError, match=message):
        audit_target(str(program))
    assert not ran.exists()


def test_what_is_no_program(tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    path.write_bytes(b"nothing of the sort")
    with pytest.raises(InputError, match=r"a.pt2 is no program of torch.export, or damaged"):
        audit_target(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/version", "3")
    with pytest.raises(InputError, match="holds no exported program"):
        audit_target(str(path))
