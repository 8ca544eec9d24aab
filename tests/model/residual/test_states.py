"""Connections whose state is more than x: what they reduce to, their formulas, first values, and what they keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from residuum.engine.autograd import Autograd
from residuum.engine.check.cases import config, ready, tokens
from residuum.engine.check.measure import compare
from residuum.engine.explicit import Explicit
from residuum.errors import InputError
from residuum.model import Transformer
from residuum.model.residual import Optim
from residuum.model.residual.attention_residuals import AttentionResiduals, Fused, naive

DOUBLE = torch.float64
NAMES = ("resi-dual", "x0", "value", "denseformer", "reversible", "attention-residuals")


def pair_of(name: str, other: str = "pre", **values: Any) -> tuple[Transformer, Transformer]:
    """A model with connection `name`, and one with `other` that has the same weights, as far as it has them."""
    model = Transformer(config(residual=name, bias=True, **values)).double()
    reference = Transformer(config(residual=other, bias=True, **values)).double()
    reference.load_state_dict(
        {key: value for key, value in model.state_dict().items() if key in reference.state_dict()}
    )
    return model, reference


def same_loss_and_gradients(model: Transformer, reference: Transformer, bound: float) -> None:
    """Of each engine: scores, loss, and the gradient of every parameter that both have."""
    batch = tokens()
    torch.testing.assert_close(model(batch[0]), reference(batch[0]), rtol=bound, atol=bound)
    for engine in (Explicit(), Autograd()):
        model.zero_grad()
        reference.zero_grad()
        ours, theirs = engine.loss_and_grads(model, batch), engine.loss_and_grads(reference, batch)
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)
        for name, p in reference.named_parameters():
            torch.testing.assert_close(model.get_parameter(name).grad, p.grad, rtol=bound, atol=bound, msg=name)


def by_both(model: Transformer, x: Tensor) -> list[Tensor]:
    """What is read of the stream after the last block, by `forward` and by the explicit pair."""
    state = kept = model.first_residual.begin(x)
    for block in model.blocks:
        state, kept = block(state), block.explicit_forward(kept)[0]
    return [model.last_residual.end(state), model.last_residual.explicit_end(kept)[0]]


# resi-dual


def test_resi_dual_without_its_second_stream_is_post() -> None:
    model, post = pair_of("resi-dual", "post")
    end = model.last_residual.end_norm
    with torch.no_grad():
        end.gain.zero_()
    same_loss_and_gradients(model, post, 1e-12)


@torch.no_grad()
def test_resi_dual_written_out() -> None:
    model = ready(Transformer(config(residual="resi-dual", bias=True)), DOUBLE)
    start = x = d = torch.randn(2, 5, 12, dtype=DOUBLE)
    for connection, branch in model.connections():
        write = branch(x)
        x, d = connection.norm(x + write), d + write
    for y in by_both(model, start):
        torch.testing.assert_close(y, x + model.last_residual.end_norm(d), rtol=1e-12, atol=1e-12)
    assert model.final_norm is None
    assert sum("end_norm" in name for name, _ in model.named_parameters()) == 2


@pytest.mark.parametrize("layers", [1, 3])
def test_resi_dual_starts_as_post_does(layers: int) -> None:
    model = Transformer(config(residual="resi-dual", n_layers=layers, d_model=48))
    up = model.blocks[0].ff.up.weight
    assert up.abs().max().item() == pytest.approx((6 / (48 + 4 * 48)) ** 0.5, rel=0.01)


# x0


def test_x0_starts_as_pre() -> None:
    model, pre = pair_of("x0")
    same_loss_and_gradients(model, pre, 0)
    assert model.final_norm is not None


@torch.no_grad()
def test_x0_written_out() -> None:
    model = ready(Transformer(config(residual="x0", bias=True)), DOUBLE)
    x0 = x = torch.randn(2, 5, 12, dtype=DOUBLE)
    for block in model.blocks:
        x = block.attn_residual.of_x * x + block.attn_residual.of_x0 * x0
        x = x + block.attn(block.attn_residual.norm(x))
        x = x + block.ff(block.ff_residual.norm(x))
    for y in by_both(model, x0):
        torch.testing.assert_close(y, x, rtol=1e-12, atol=1e-12)


def test_x0_asks_for_a_slower_scale_of_the_stream() -> None:
    model = Transformer(config(residual="x0", n_layers=3))
    asked = type(model.first_residual).optim(model)
    assert asked == {f"blocks.{layer}.attn_residual.of_x": Optim(lr=0.01) for layer in range(3)}
    assert asked.keys() <= dict(model.named_parameters()).keys()
    assert [model.get_parameter(name).item() for name in asked] == [1, 1, 1]
    assert [p.item() for name, p in model.named_parameters() if name.endswith("of_x0")] == [0, 0, 0]


# value


def test_value_that_mixes_nothing_in_is_pre() -> None:
    for values in ({}, {"positions": "rotary", "n_kv_heads": 2}):
        model, pre = pair_of("value", n_layers=3, **values)
        with torch.no_grad():
            for connection in (model.blocks[1].attn_residual, model.blocks[2].attn_residual):
                assert (connection.of_own.item(), connection.of_first.item()) == (0.5, 0.5)
                connection.of_own.fill_(1)
                connection.of_first.fill_(0)
        same_loss_and_gradients(model, pre, 0)


@torch.no_grad()
def test_value_written_out() -> None:
    """One head and a causal mask, so that attention is three products."""
    model = ready(Transformer(config(residual="value", n_layers=3, n_heads=1)), DOUBLE)
    start = x = torch.randn(2, 5, 12, dtype=DOUBLE)
    first = None
    for block in model.blocks:
        normed, attn = block.attn_residual.norm(x), block.attn
        v = attn.v(normed)
        if first is None:
            first = v
        else:
            v = block.attn_residual.of_own * v + block.attn_residual.of_first * first
        scores = attn.q(normed) @ attn.k(normed).mT / 12**0.5
        x = x + attn.out(scores.masked_fill(torch.ones(5, 5).triu(1) > 0, float("-inf")).softmax(-1) @ v)
        x = x + block.ff(block.ff_residual.norm(x))
    for y in by_both(model, start):
        torch.testing.assert_close(y, x, rtol=1e-12, atol=1e-12)


GRID = {
    "llama": {"norm": "rmsnorm", "activation": "swiglu", "positions": "rotary", "n_kv_heads": 2, "head": "untied"},
    "encoder": {"causal": False, "bias": True},
    "dropout": {"dropout": 0.3, "bias": True},
}


@pytest.mark.parametrize("values", GRID.values(), ids=list(GRID))
@pytest.mark.parametrize("name", NAMES)
def test_the_engines_agree_whatever_the_model_is(name: str, values: dict[str, Any]) -> None:
    model, batch = ready(Transformer(config(residual=name, n_layers=3, **values)), DOUBLE), tokens()
    by_hand, by_autograd = gradients_of(Explicit(), model, batch), gradients_of(Autograd(), model, batch)
    assert compare("", name, "autograd", by_hand, by_autograd).ok
    for keep in ("block-inputs", "every-2"):
        sparing = gradients_of(Explicit(keep), model, batch)
        assert all(torch.equal(sparing[key], gradient) for key, gradient in by_hand.items())


def gradients_of(engine: Any, model: Transformer, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(5)
    loss = engine.loss_and_grads(model, batch)
    return {"loss": loss, **{name: p.grad.clone() for name, p in model.named_parameters()}}


@pytest.mark.parametrize("values", [GRID["llama"], {"n_kv_heads": 1, "positions": "sinusoidal"}], ids=str)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_cache_changes_nothing(name: str, values: dict[str, Any]) -> None:
    model = ready(Transformer(config(residual=name, n_layers=3, **values)), DOUBLE).eval()
    read = torch.randint(31, (2, 9))
    cache = model.new_cache(batch=2)
    pieces = [model(read[:, start:end], cache=cache) for start, end in ((0, 4), (4, 5), (5, 9))]
    torch.testing.assert_close(torch.cat(pieces, 1), model(read), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_ignored(name: str) -> None:
    model = ready(Transformer(config(residual=name, causal=False)), DOUBLE)
    read, mask = torch.randint(31, (2, 5)), torch.tensor([[True] * 4 + [False]] * 2)
    other = read.clone()
    other[:, -1] = (other[:, -1] + 1) % 31
    torch.testing.assert_close(model(read, mask)[:, :-1], model(other, mask)[:, :-1], rtol=1e-12, atol=1e-12)


# denseformer


def test_denseformer_starts_as_pre() -> None:
    model, pre = pair_of("denseformer", n_layers=3)
    same_loss_and_gradients(model, pre, 1e-12)
    assert [block.ff_residual.alpha.tolist() for block in model.blocks] == [[0, 1], [0, 0, 1], [0, 0, 0, 1]]


@torch.no_grad()
def test_denseformer_written_out() -> None:
    model = ready(Transformer(config(residual="denseformer", n_layers=3, bias=True)), DOUBLE)
    x = torch.randn(2, 5, 12, dtype=DOUBLE)
    outputs = [x]
    for block in model.blocks:
        x = x + block.attn(block.attn_residual.norm(x))
        outputs.append(x + block.ff(block.ff_residual.norm(x)))
        x = torch.tensordot(block.ff_residual.alpha, torch.stack(outputs), dims=1)
    for y in by_both(model, outputs[0]):
        torch.testing.assert_close(y, x, rtol=1e-12, atol=1e-12)


# reversible


@torch.no_grad()
def test_reversible_written_out() -> None:
    """As RevNet has it, two streams and two functions a block; the first attention is pre-norm's."""
    model = ready(Transformer(config(residual="reversible", bias=True)), DOUBLE)
    start = x1 = x2 = torch.randn(2, 5, 12, dtype=DOUBLE)
    for block in model.blocks:
        x1 = x1 + block.attn(block.attn_residual.norm(x2))
        x2 = x2 + block.ff(block.ff_residual.norm(x1))
    for y in by_both(model, start):
        torch.testing.assert_close(y, (x1 + x2) / 2, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_reversible_attends_first_as_pre_does() -> None:
    model, pre = pair_of("reversible")
    x = torch.randn(2, 5, 12, dtype=DOUBLE)
    state = model.first_residual(model.first_residual.begin(x), model.blocks[0].attn)
    assert torch.equal(state[0], pre.first_residual(x, pre.blocks[0].attn))
    assert torch.equal(state[1], x)
    for block in (*model.blocks, *pre.blocks):
        for last in (block.attn.out, block.ff.down):
            last.weight.zero_()
            last.bias.zero_()
    read = tokens()[0]
    assert torch.equal(model(read), pre(read))


@pytest.mark.parametrize(("kind", "bound"), [(torch.float32, 3e-6), (DOUBLE, 5e-15)])
@torch.no_grad()
def test_reversible_takes_back_every_state(kind: torch.dtype, bound: float) -> None:
    model = ready(Transformer(config(residual="reversible", n_layers=8, bias=True, dropout=0.3)), kind)
    first = model.first_residual
    states, kept = [first.begin(torch.randn(2, 5, 12, dtype=kind))], []
    for block in model.blocks:
        state, saved = block.explicit_forward(states[-1])
        states.append(state)
        kept.append(saved)
    y, of_end = model.last_residual.explicit_end(states[-1])
    dstate = model.last_residual.explicit_end_backward(torch.randn_like(y), of_end)
    for block, saved, state in reversed(list(zip(model.blocks, kept, states, strict=False))):
        dstate = block.explicit_backward(dstate, saved)
        for found, wanted in zip(dstate[2:], state, strict=True):
            assert (found - wanted).norm() <= bound * wanted.norm()


def bytes_of(kept: Any, model: Transformer, seen: dict[int, int]) -> int:
    """How many bytes lie in the tensors of nested tuples, the weights apart, each memory counted once."""
    if isinstance(kept, Tensor):
        if all(kept.untyped_storage().data_ptr() != p.untyped_storage().data_ptr() for p in model.parameters()):
            seen[kept.untyped_storage().data_ptr()] = kept.untyped_storage().nbytes()
    elif isinstance(kept, tuple | list):
        for inner in kept:
            bytes_of(inner, model, seen)
    return sum(seen.values())


@torch.no_grad()
def kept_bytes(name: str, layers: int, dropout: float) -> int:
    model = Transformer(config(residual=name, n_layers=layers, dropout=dropout))
    state, kept = model.first_residual.begin(torch.randn(2, 5, 12)), []
    for block in model.blocks:
        state, saved = block.explicit_forward(state)
        kept.append(saved)
    return bytes_of([kept, model.last_residual.explicit_end(state)[1]], model, {})


def test_reversible_keeps_the_same_at_any_depth() -> None:
    state = 2 * (2 * 5 * 12) * 4
    assert kept_bytes("reversible", 4, 0.0) == kept_bytes("reversible", 16, 0.0) == state
    draws = torch.get_rng_state().nbytes
    assert [kept_bytes("reversible", layers, 0.3) for layers in (4, 16)] == [state + 2 * n * draws for n in (4, 16)]
    assert kept_bytes("pre", 16, 0.0) > 3.9 * kept_bytes("pre", 4, 0.0)


def test_reversible_leaves_the_random_numbers_as_autograd_does() -> None:
    model, batch = ready(Transformer(config(residual="reversible", dropout=0.3)), DOUBLE), tokens()
    after = []
    for engine in (Explicit(), Autograd()):
        gradients_of(engine, model, batch)
        after.append(torch.get_rng_state())
    assert torch.equal(*after)


def test_reversible_with_dropout_is_not_compiled() -> None:
    """A graph would hold the numbers of one run, and its backward would drop others than its forward."""
    model = Transformer(config(residual="reversible", dropout=0.3))
    with pytest.raises(InputError, match=r"reversible.*set model\.dropout to 0"):
        Explicit(compiled=True).loss_and_grads(model, tokens())


# attention-residuals


def test_attention_residuals_start_as_pre_but_for_epsilon() -> None:
    """A mean of n writes is their sum divided by n, which a norm without ε does not see."""
    for norm in ("layernorm", "rmsnorm"):
        model, pre = pair_of("attention-residuals", n_layers=3, norm=norm, norm_eps=1e-30)
        same_loss_and_gradients(model, pre, 1e-12)
        queries = [p for name, p in model.named_parameters() if "query" in name]
        assert len(queries) == 6  # the first sub-layer has nothing to weigh, and there is one at the end
        assert not any(p.any() for p in queries)


@torch.no_grad()
def test_attention_residuals_written_out() -> None:
    model = ready(Transformer(config(residual="attention-residuals", bias=True)), DOUBLE)

    def mean(query: Tensor, writes: list[Tensor]) -> Tensor:
        scores = [(query * w / (w.square().mean(-1, keepdim=True) + 1e-5).sqrt()).sum(-1) for w in writes]
        total = sum(score.exp() for score in scores)
        return sum((score.exp() / total)[..., None] * w for score, w in zip(scores, writes, strict=True))

    writes = [torch.randn(2, 5, 12, dtype=DOUBLE)]
    for connection, branch in model.connections():
        h = mean(connection.query, writes) if connection.place else writes[0]
        writes.append(branch(connection.norm(h)))
    for y in by_both(model, writes[0]):
        torch.testing.assert_close(y, mean(model.last_residual.end_query, writes), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 1, 1), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("depth", [1, 2, 7])
def test_fused_is_naive(depth: int, shape: tuple[int, ...]) -> None:
    query = torch.randn(shape[-1], dtype=DOUBLE, requires_grad=True)
    vs = [(torch.randn(shape, dtype=DOUBLE) * 4**i).requires_grad_() for i in range(depth)]
    connection = AttentionResiduals(config(d_model=shape[-1], n_heads=1, norm_eps=0.1), 0)
    state = [part for v in vs for part in connection.begin(v)]
    found = Fused.apply(query, *state[::2], *state[1::2])
    wanted = naive(query, vs, 0.1)
    dh = torch.randn_like(wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(h, (query, *vs), dh) for h in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_no_write_is_copied() -> None:
    """What a sum keeps beside what is there already: two numbers a row for each write that it reads, and its h."""
    model = Transformer(config(residual="attention-residuals", n_layers=4))
    with torch.no_grad():
        state = model.first_residual.begin(torch.randn(2, 5, 12))
        for block in model.blocks:
            state, _ = block.explicit_forward(state)
        _, (vs, rs, *kept) = model.last_residual.explicit_end(state)
    assert (len(vs), len(rs)) == (9, 9)
    assert all(mine is its for mine, its in zip((*vs, *rs), state, strict=True))
    assert [tuple(t.shape) for t in kept] == [(9, 2, 5, 1)] * 2
