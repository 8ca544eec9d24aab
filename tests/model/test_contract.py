"""What every part and every connection owes the explicit engine: its pair, right, and nobody disturbed by it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from residuum.engine import make_engine
from residuum.engine.check.cases import Case, cases, config, ready, tokens
from residuum.engine.check.measure import compare, measured
from residuum.engine.check.pair import Pair, of_module, same_draws
from residuum.engine.check.stack import Stack
from residuum.model import Block, ModelConfig, Transformer, cross_entropy, feedforward, gradient, product
from residuum.model.attention import Attention
from residuum.model.dropout import Dropout
from residuum.model.feedforward import make_feedforward
from residuum.model.linear import Linear
from residuum.model.norm import LayerNorm, RMSNorm, layer_norm_gradients
from residuum.model.residual import REGISTRY

every_case = pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.part}-{case.name}")


@every_case
def test_values(case: Case) -> None:
    rows = list(measured(case.part, case.name, case.make))
    assert [row.compared for row in rows] == ["forward", "differences", "autograd", "float32"]
    assert [row for row in rows if row.skipped or not row.ok] == []


@st.composite
def shapes(draw: st.DrawFn) -> tuple[ModelConfig, int, int]:
    """Widths from 1, odd ones, and heads that share keys. ε is wide: a norm of two entries is else nearly a jump."""
    kv_heads, group, d_head = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    positions = draw(st.sampled_from(["learned", "rotary"]))
    assume(positions == "learned" or d_head % 2 == 0)
    shape = config(
        n_layers=1,
        d_model=kv_heads * group * d_head,
        n_heads=kv_heads * group,
        n_kv_heads=kv_heads,
        d_ff=draw(st.sampled_from([None, 1, 5])),
        norm=draw(st.sampled_from(["layernorm", "rmsnorm"])),
        norm_eps=0.1,
        activation=draw(st.sampled_from(["gelu", "swiglu"])),
        residual=draw(st.sampled_from(sorted(REGISTRY))),
        causal=draw(st.booleans()),
        bias=draw(st.booleans()),
        positions=positions,
    )
    return shape, draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 7]))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(shapes())
def test_values_at_any_shape(drawn: tuple[ModelConfig, int, int]) -> None:
    shape, batch, length = drawn
    rows = measured(
        shape.residual,
        repr(shape),
        lambda kind: of_module(ready(Stack(shape), kind), torch.randn(batch, length, shape.d_model, dtype=kind)),
    )
    assert [row for row in rows if not row.ok] == []


@every_case
def test_any_layout_of_dy(case: Case) -> None:
    pair = case.make(torch.float64)
    y = pair.y().detach()
    if y.ndim == 0:
        assert case.part in ("cross_entropy", "head", "transformer", "experts")
        return
    dy = torch.randn_like(y)
    layouts = [dy.mT.contiguous().mT, dy[..., :1].expand_as(dy), dy[:, :1].expand_as(dy), dy[:1].expand_as(dy)]
    for layout in layouts:
        assert not layout.is_contiguous() or 1 in layout.shape
        before = layout.clone()
        expected = pair.by_hand(layout.contiguous())[1]
        row = compare(case.part, case.name, "autograd", pair.by_hand(layout)[1], expected)
        assert row.error <= 1e-13, row
        assert torch.equal(layout, before)


def direct() -> Iterator[tuple[str, nn.Module, Tensor, tuple[Any, ...]]]:
    """Everything with x in and y out, to be called by hand."""
    angles = Transformer(config(positions="rotary")).rotary(0, 5)
    mask = torch.tensor([[True] * 5, [False, True, True, False, True]])
    yield "linear", Linear(12, 7, True, 0.3), torch.randn(2, 5, 12), ()
    yield "layernorm", LayerNorm(12, 1e-5, True), torch.randn(2, 5, 12), ()
    yield "rmsnorm", RMSNorm(12, 1e-5), torch.randn(2, 5, 12), ()
    yield "dropout", Dropout(0.3), torch.randn(2, 5, 12), ()
    for activation in ("gelu", "relu", "squared_relu", "swiglu"):
        yield activation, make_feedforward(config(activation=activation, bias=True)), torch.randn(2, 5, 12), ()
    yield "dropped", make_feedforward(config(dropout=0.3)), torch.randn(2, 5, 12), ()
    several = {"n_experts": 4, "init_std": 1.0}
    yield "experts", make_feedforward(config(**several, bias=True, dropout=0.3)), torch.randn(2, 5, 12), ()
    yield "top-1", make_feedforward(config(**several, experts_per_token=1)), torch.randn(2, 5, 12), ()
    yield "attention", Attention(config(bias=True)), torch.randn(2, 5, 12), ()
    yield "padded", Attention(config(n_kv_heads=2)), torch.randn(2, 5, 12), (angles, mask)
    yield "naive", Attention(config(n_kv_heads=3, dropout=0.3)), torch.randn(2, 5, 12), (angles,)
    yield "block", Block(config(residual="pre", dropout=0.3), 0), torch.randn(2, 5, 12), (angles,)
    for name in REGISTRY:
        yield name, ready(Stack(config(residual=name, dropout=0.3)), torch.float32), torch.randn(2, 5, 12), ()


def tensors_in(saved: Any) -> list[Tensor]:
    if isinstance(saved, Tensor):
        return [saved]
    return [t for inner in saved for t in tensors_in(inner)] if isinstance(saved, tuple | list) else []


def parameters_of(part: nn.Module, args: tuple[Any, ...]) -> list[nn.Parameter]:
    return [p for module in (part, *args) if isinstance(module, nn.Module) for p in module.parameters()]


@pytest.mark.parametrize(("name", "part", "x", "args"), [pytest.param(*d, id=d[0]) for d in direct()])
def test_backward_disturbs_nobody(name: str, part: nn.Module, x: Tensor, args: tuple[Any, ...]) -> None:
    before = x.clone()
    parameters = parameters_of(part, args)
    weights = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        y, saved = part.explicit_forward(x, *args)
        dy = torch.randn_like(y)
        given, written = dy.clone(), y.clone()
        kept = tensors_in(saved)
        copies = [tensor.clone() for tensor in kept]
        dx = part.explicit_backward(dy, saved)
        first = [p.grad.clone() for p in parameters]
        again = part.explicit_backward(dy, saved)
    assert torch.equal(x, before)
    assert torch.equal(dy, given)
    assert torch.equal(y, written)
    assert all(map(torch.equal, kept, copies))
    assert all(map(torch.equal, parameters, weights))
    assert torch.equal(dx, again)
    for p, once in zip(parameters, first, strict=True):
        torch.testing.assert_close(p.grad, 2 * once, rtol=1e-6, atol=1e-6)
    own = [dx, again, x, y, dy, *(p.grad for p in parameters), *parameters]
    assert len({tensor.untyped_storage().data_ptr() for tensor in own}) == len(own)


@every_case
def test_the_same_where_gradients_are_on(case: Case) -> None:
    pair = case.make(torch.float64)
    y = pair.y().detach()
    dy = torch.randn_like(y)
    expected = pair.by_hand(dy)[1]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        pair.module.zero_grad()
        torch.manual_seed(0)
        gradients = pair.explicit(dy, *pair.inputs.values())[1]
    for x, gradient_of_x in zip(pair.inputs, gradients, strict=True):
        assert torch.equal(gradient_of_x, expected[x])
    for name, p in pair.module.named_parameters():
        # What is expected is half of two passes, and a sum may round where one does not.
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-12, atol=1e-13, msg=name)


@pytest.mark.parametrize("residual", sorted(REGISTRY))
@pytest.mark.parametrize("dropout", [0.0, 0.3])  # the fused kernel and the readable one
def test_no_gradient_flows_to_a_later_place(residual: str, dropout: float) -> None:
    block = ready(Stack(config(residual=residual, dropout=dropout)), torch.float32)
    with torch.no_grad():
        y, saved = block.explicit_forward(torch.randn(2, 7, 12))
        for place in range(7):
            dy = torch.zeros_like(y)
            dy[:, place] = torch.randn(2, 12)
            dx = block.explicit_backward(dy, saved)
            assert not dx[:, place + 1 :].any()
            assert dx[:, : place + 1].any(-1).all(0).sum() >= min(place + 1, 2)  # it does flow back


@pytest.mark.parametrize("residual", sorted(REGISTRY))
def test_a_stream_is_left_as_it_is_at_the_start_where_the_connection_says_so(residual: str) -> None:
    blocks = Transformer(config(residual=residual)).eval()
    stack = Stack(blocks.config).eval()
    stack.blocks = blocks.blocks
    x = torch.randn(2, 5, 12)
    untouched = stack.blocks[-1].ff_residual.end(stack.blocks[0].attn_residual.begin(x))
    assert torch.equal(stack(x), untouched) == REGISTRY[residual].identity_at_start


HALF = [
    {"bias": True},
    {"norm": "rmsnorm", "activation": "swiglu", "positions": "rotary", "n_kv_heads": 2},
    {"residual": "post", "activation": "squared_relu"},
    {"residual": "none", "norm": "rmsnorm"},
    {"residual": "gated"},
    {"residual": "highway", "norm": "rmsnorm"},
    {"residual": "gru"},
    {"residual": "deepnorm", "branch_init": "gpt2"},
    {"residual": "admin", "branch_init": "gpt2"},
    {"residual": "sandwich"},
    {"residual": "layerscale", "bias": True},
    {"residual": "rezero"},
    {"residual": "stochastic-depth", "residual_drop": 0.5},
    {"residual": "x0"},
    {"residual": "value", "n_kv_heads": 2},
    {"residual": "denseformer"},
    {"residual": "reversible"},
    {"residual": "attention-residuals"},
    {"residual": "hyper-connections"},
    {"residual": "mhc"},
]


def gradients_of(engine: str, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    with same_draws():
        loss = make_engine(engine).loss_and_grads(model, batch)
    return {"loss": loss, **{name: p.grad.detach().clone() for name, p in model.named_parameters()}}


def distances(ours: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    """Relative, but for what is next to nothing: a key's bias has no gradient in theory."""
    least = 0.01 * torch.stack([t.norm() for t in truth.values()]).norm()
    return torch.stack([(ours[name] - t).norm() / max(t.norm(), least) for name, t in truth.items()])


@pytest.mark.parametrize("values", HALF, ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["autocast", "weights"])
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of F.rms_norm, where residual is none
def test_half_precision_is_as_good_as_autograds(values: dict[str, Any], weights: torch.dtype) -> None:
    mine, its = [], []
    for _ in range(4):
        shape = config(**{"d_model": 48, "n_heads": 6, "context": 32, **values})
        model = ready(Transformer(shape), torch.float32).to(weights).float()
        batch = tuple(torch.randint(31, (2, 4, 32)))
        truth = gradients_of("autograd", model, batch)
        model.to(weights)
        with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
            ours, theirs = gradients_of("explicit", model, batch), gradients_of("autograd", model, batch)
        assert {name: g.dtype for name, g in ours.items()} == {name: g.dtype for name, g in theirs.items()}
        mine.append(distances(ours, truth))
        its.append(distances(theirs, truth))
    ours_on_average, theirs_on_average = torch.stack(mine).mean(0), torch.stack(its).mean(0)
    assert theirs_on_average.max() > 0.005  # half precision was at work
    assert ours_on_average.mean() <= 1.1 * theirs_on_average.mean()
    assert (ours_on_average <= 2 * theirs_on_average)[1:].all()  # the loss is one number, right or wrong by chance


@pytest.mark.parametrize("values", HALF, ids=str)
def test_chunk_borders_change_nothing(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = ready(Transformer(config(**values)), torch.float64), tokens(7)
    whole = gradients_of("explicit", model, batch)
    monkeypatch.setattr(feedforward, "CHUNK", 1)
    monkeypatch.setattr(feedforward, "LEAST_ROWS", 3)
    monkeypatch.setattr(cross_entropy, "CHUNK", 1)
    monkeypatch.setattr(cross_entropy, "LEAST_ROWS", 4)
    monkeypatch.setattr(gradient, "BLOCK", 5)
    pieces = gradients_of("explicit", model, batch)
    assert compare("", "", "autograd", pieces, whole).error <= 1e-13
    assert compare("", "", "autograd", pieces, gradients_of("autograd", model, batch)).ok


@pytest.mark.parametrize("parts", [["attn.q"], ["attn.k", "ff.up"], ["ff.gate", "attn.v"], []], ids=str)
def test_some_maps_of_a_block_round_what_they_read(parts: list[str]) -> None:
    """And one has a norm of its own: only maps that all round x as it is share it."""
    block = ready(Block(config(linear="ternary", norm="rmsnorm", activation="swiglu"), 0), torch.float64)
    for name in parts:
        block.set_submodule(
            name, ready(Linear(12, block.get_submodule(name).weight.shape[0], False, 0.3), torch.float64)
        )
    if not parts:
        block.attn.q.norm = ready(RMSNorm(12, 1e-5), torch.float64)
        block.ff.up.norm = ready(RMSNorm(12, 1e-5), torch.float64)
    x, dy = torch.randn(2, 2, 5, 12, dtype=torch.float64).unbind()
    x.requires_grad_()
    block(x).backward(dy)
    expected = {name: parameter.grad for name, parameter in block.named_parameters()}
    block.zero_grad()
    with torch.no_grad():
        y, saved = block.explicit_forward(x)
        torch.testing.assert_close(y, block(x))
        torch.testing.assert_close(block.explicit_backward(dy, saved), x.grad)
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_blocks_of_a_gradient_at_their_real_size() -> None:
    def make(kind: torch.dtype) -> Pair:
        return of_module(ready(Linear(3, 2 * gradient.BLOCK + 7, True, 0.3), kind), torch.randn(2, 3, dtype=kind))

    assert [row for row in measured("linear", "tall", make) if not row.ok] == []


def test_what_is_no_cpu_takes_all_rows_at_once() -> None:
    """Said of meta tensors, which any machine has."""
    sizes: list[int] = []

    def seen(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return rows

    for device in ("cpu", "meta"):
        assert feedforward.by_rows(seen, torch.empty(2, 256, 2000, device=device)).shape == (2, 256, 2000)
    assert sizes == [256, 256, 512]


class Calls(TorchDispatchMode):
    """Hears every kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))

    @property
    def onednn(self) -> bool:
        return any(name.startswith("mkldnn::") for name in self.names)


@pytest.mark.skipif(not product.HAS_ONEDNN, reason="because this PyTorch has no oneDNN")
@pytest.mark.parametrize("bias", [True, False])
def test_onednn_gives_the_same(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    part = ready(Linear(13, 7, bias, 0.3), torch.float32)
    x, dy = torch.randn(3, 5, 13), torch.randn(3, 5, 7)
    layouts = [
        (x, dy),
        (x.mT.contiguous().mT, dy.mT.contiguous().mT),
        (x.transpose(0, 1), dy.transpose(0, 1)),
        (x[0], dy[0]),
        (x[:, ::2, :].expand(3, 3, 13), dy[..., :1].expand(3, 5, 7)[:, ::2]),
        (x[:1, :1], dy[:1, :1]),
    ]
    for x_given, dy_given in layouts:
        results = {}
        for least in (0, 2**62):
            monkeypatch.setattr(product, "ONEDNN_FROM", least)
            part.zero_grad()
            with torch.no_grad(), Calls() as calls:
                y, saved = part.explicit_forward(x_given)
                dx = part.explicit_backward(dy_given, saved)
            assert calls.onednn == (least == 0)
            results[least] = {"y": y, "x": dx, **{name: p.grad for name, p in part.named_parameters()}}
        assert compare("", "", "float32", results[0], results[2**62]).error <= 1e-6


@pytest.fixture
def without_onednn() -> Iterator[None]:
    """PyTorch's own context manager for it warns of flags that this processor has not."""
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(True)


def uses_onednn(kind: torch.dtype = torch.float32) -> bool:
    part = Linear(6, 4, False, 0.3).to(kind)
    with torch.no_grad(), Calls() as calls:
        _, saved = part.explicit_forward(torch.randn(3, 6, dtype=kind))
        part.explicit_backward(torch.randn(3, 4, dtype=kind), saved)
    return calls.onednn


def test_onednn_is_left_alone_where_somebody_turned_it_off(
    monkeypatch: pytest.MonkeyPatch, without_onednn: None
) -> None:
    monkeypatch.setattr(product, "ONEDNN_FROM", 0)
    assert not uses_onednn()


def test_onednn_is_left_alone_where_it_would_compute_another_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "ONEDNN_FROM", 0)
    assert uses_onednn() == product.HAS_ONEDNN
    assert not uses_onednn(torch.float64)
    assert not uses_onednn(torch.bfloat16)
    part = Linear(6, 4, False, 0.3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, saved = part.explicit_forward(torch.randn(3, 6))
        assert y.dtype == torch.bfloat16
        assert part.explicit_backward(y, saved).dtype == torch.float32  # as x is


@pytest.mark.parametrize("counted", [14, 1, 0])
def test_targets_that_do_not_count(counted: int) -> None:
    model, (read, wanted) = ready(Transformer(config()), torch.float64), torch.randint(31, (2, 2, 7))
    wanted.view(-1)[counted:] = -100
    ours, theirs = gradients_of("explicit", model, (read, wanted)), gradients_of("autograd", model, (read, wanted))
    if not counted:
        assert ours.pop("loss").isnan()
        assert theirs.pop("loss").isnan()
        assert not any(g.any() for g in theirs.values())
    assert compare("", "", "autograd", ours, theirs).ok


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_frozen_parameter_receives_no_gradient(positions: str) -> None:
    whole = ready(Transformer(config(bias=True, positions=positions, head="untied")), torch.float64)
    batch = tokens()
    expected = gradients_of("explicit", whole, batch)
    for frozen in [name for name, _ in whole.named_parameters()]:
        whole.zero_grad()
        whole.get_parameter(frozen).requires_grad_(False)
        make_engine("explicit").loss_and_grads(whole, batch)
        assert [name for name, p in whole.named_parameters() if p.grad is None] == [frozen]
        assert all(torch.equal(p.grad, expected[name]) for name, p in whole.named_parameters() if name != frozen)
        whole.get_parameter(frozen).requires_grad_(True)


def test_layer_norm_step_by_step_is_the_kernel() -> None:
    part, x, dy = ready(LayerNorm(7, 1e-5, True), torch.float64), *torch.randn(2, 3, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        _, saved = part.explicit_forward(x)
        dx = part.explicit_backward(dy, saved)
    steps = layer_norm_gradients(dy, *saved, part.gain)
    torch.testing.assert_close(steps, (dx, part.gain.grad, part.bias.grad), rtol=1e-12, atol=1e-12)
