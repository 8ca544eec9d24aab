"""What is done with several streams: compiled, and as PyTorch has it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from residuum.engine import make_engine
from residuum.engine.check.cases import config, ready, tokens
from residuum.engine.check.measure import compare
from residuum.model import Transformer
from residuum.model.residual import mixing
from residuum.model.residual.mhc import balance, balance_backward, sinkhorn, sinkhorn_backward

BOTH = ["hyper-connections", "mhc"]
both = pytest.mark.parametrize("name", BOTH)


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    def take_away() -> None:
        mixing._kernels.cache_clear()
        monkeypatch.setitem(sys.modules, "numba", None)

    yield take_away
    mixing._kernels.cache_clear()


def needs_numba() -> None:
    pytest.importorskip("numba", reason="because the extra `packed` is not installed")


@pytest.mark.parametrize(("n", "shape"), [*product((1, 2, 4, 5), [(1, 3), (7, 30), (300, 5)]), (1024, (2, 3))], ids=str)
def test_compiled_is_pytorch(n: int, shape: tuple[int, int], without_numba: Callable[[], None]) -> None:
    needs_numba()
    torch.manual_seed(0)
    count, d = shape
    table, logits, dtable = (torch.randn(count, n, n + 2) for _ in range(3))
    rows, dy, drows = (torch.randn(count, n, d) for _ in range(3))
    write, dread, size = torch.randn(count, d), torch.randn(count, d), torch.randn(count, n)

    def all_of_it() -> dict[str, Tensor]:
        dwrite, back = mixing.written_back(table, dy, write)
        mixing.table_back(rows, dread, dy, back)
        into = drows.clone()
        mixing.rows_back(table, rows, dread, dy, size, into)
        balanced, steps = balance(logits)
        dlogits = balance_backward(dtable, balanced, steps)
        read, mixed = mixing.read(table, rows), mixing.mix(table, rows, write)
        return {
            "read": read, "mixed": mixed, "dwrite": dwrite, "dtable": back, "drows": into, "balanced": balanced,
            "dlogits": dlogits, **steps._asdict(),
        }  # fmt: skip

    compiled = all_of_it()
    assert mixing._kernels(os.getpid()) is not None
    without_numba()
    plain = all_of_it()
    for what, value in plain.items():
        torch.testing.assert_close(compiled[what], value, rtol=2e-5, atol=2e-5, msg=what)


@both
@pytest.mark.parametrize("engine", ["autograd", "explicit"])
def test_every_gradient_without_numba(name: str, engine: str, without_numba: Callable[[], None]) -> None:
    needs_numba()
    model, batch = ready(Transformer(config(residual=name, bias=True, norm_eps=1.0)), torch.float32), tokens(7)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        loss = make_engine(engine).loss_and_grads(model, batch)
        return {"loss": loss, **{n: p.grad.clone() for n, p in model.named_parameters()}}

    compiled = gradients()
    without_numba()
    assert compare(name, "", "float32", compiled, gradients()).error <= 1e-5


@pytest.mark.parametrize("size", [0, 1, 1e3, 1e6])
def test_compiled_matrices_are_balanced_whatever_the_logits(size: float) -> None:
    needs_numba()
    torch.manual_seed(0)
    logits = size * torch.randn(50, 4, 6)
    table, steps = balance(logits)
    torch.testing.assert_close(table[..., 1:-1].sum(1), torch.ones(50, 4), rtol=1e-5, atol=1e-5)
    mix, _ = sinkhorn(logits[..., 1:-1].permute(1, 2, 0).contiguous())
    torch.testing.assert_close(table[..., 1:-1], mix.permute(2, 0, 1), rtol=1e-4, atol=1e-6)
    dtable = torch.randn(50, 4, 6)
    dmix = dtable[..., 1:-1].permute(1, 2, 0).contiguous()
    expected = sinkhorn_backward(dmix, mix, steps).permute(2, 0, 1)
    found = balance_backward(dtable, table, steps)[..., 1:-1]
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_the_same_bits_whatever_the_threads() -> None:
    needs_numba()
    table, rows, write = torch.rand(300, 4, 6), torch.randn(300, 4, 7), torch.randn(300, 7)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append([mixing.mix(table, rows, write), *balance(table)[1]])
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))


THREADS = """
import torch, numba
torch.set_num_threads(1)
numba.set_num_threads(3)
from residuum.model.residual.mixing import mix
mix(torch.ones(3, 4, 6), torch.ones(3, 4, 5), torch.ones(3, 5))
assert numba.threading_layer()  # Numba's threads were started
assert (torch.get_num_threads(), numba.get_num_threads()) == (1, 3)
"""


def test_how_many_threads_others_have_is_left_alone() -> None:
    needs_numba()
    environment = os.environ | {"NUMBA_NUM_THREADS": "4"}
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_full_disk_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_numba()
    from residuum.model import kernels

    class Full:
        py_func = staticmethod(kernels.read.py_func)

        def __call__(self, *_: object) -> None:
            raise OSError(28, "No space left on device")

    table, rows = torch.randn(3, 4, 6), torch.randn(3, 4, 5)
    expected = mixing.read(table, rows)
    monkeypatch.setattr(kernels, "read", Full())
    for _ in range(2):
        torch.testing.assert_close(mixing.read(table, rows), expected)
    assert not isinstance(kernels.read, Full)


def test_several_threads_of_a_program() -> None:
    needs_numba()
    table, rows, write = torch.randn(300, 4, 6), torch.randn(300, 4, 50), torch.randn(300, 50)
    expected, found = mixing.mix(table, rows, write), []
    workers = [
        threading.Thread(target=lambda: found.extend(mixing.mix(table, rows, write) for _ in range(50)))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 200 and all(torch.equal(each, expected) for each in found)


FORKED = """
import os, torch
from residuum.model.residual.mixing import mix
a = torch.ones(3, 4, 6), torch.ones(3, 4, 5), torch.ones(3, 5)
expected = mix(*a)
child = os.fork()
if not child:
    torch.set_num_threads(1)  # nor are PyTorch's threads
    os._exit(0 if torch.equal(mix(*a), expected) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="because this system does not fork")
def test_a_forked_process_does_without() -> None:
    """Numba's threads are not there, and some of its threading layers would end the process."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_nothing_is_compiled_for_other_tensors() -> None:
    table, rows, write = torch.randn(3, 4, 6), torch.randn(3, 4, 5), torch.randn(3, 5)
    y = torch.empty_like(rows)
    for each in (
        (table.double(), rows.double(), write.double(), y.double()),
        (table, rows.mT.contiguous().mT, write, y),
        (table.to("meta"), rows.to("meta"), write.to("meta"), y.to("meta")),
        (table.bfloat16(), rows, write, y),
    ):
        assert not mixing.compiled("mix", mixing.streams_of(each[1]), *each)
