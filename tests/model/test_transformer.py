from __future__ import annotations

import itertools

import pytest
import torch

from residuum.engine.check.cases import ready
from residuum.model import ModelConfig, Transformer
from residuum.model.residual import REGISTRY

BASE = {"vocab_size": 31, "context": 10, "d_model": 12, "n_layers": 2, "n_heads": 3}
POSITIONS = ("learned", "sinusoidal", "rotary")


def build(**values) -> Transformer:
    return Transformer(ModelConfig(**{**BASE, **values})).eval()


def tokens(batch: int = 2, length: int = 10) -> torch.Tensor:
    return torch.randint(31, (batch, length))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("residual", sorted(REGISTRY))
def test_a_decoder_sees_no_later_token(residual: str, positions: str) -> None:
    model = build(residual=residual, positions=positions, init_std=0.3)
    x = tokens()
    later = x.clone()
    later[:, 6:] = (later[:, 6:] + 1) % 31
    before, after = model(x), model(later)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_an_encoder_sees_all_and_ignores_padding() -> None:
    model = build(causal=False, init_std=0.3)
    x = tokens()
    other = x.clone()
    other[:, -1] = (other[:, -1] + 1) % 31
    assert not torch.allclose(model(x)[:, 0], model(other)[:, 0])
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[:, -1] = False
    torch.testing.assert_close(model(x, mask)[:, :-1], model(other, mask)[:, :-1])


@pytest.mark.parametrize("residual", sorted(REGISTRY))
def test_the_cache_changes_nothing_for_any_connection(residual: str) -> None:
    the_cache_changes_nothing(build(residual=residual, init_std=0.3))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_the_cache_changes_nothing(positions: str, kv_heads: int) -> None:
    the_cache_changes_nothing(build(positions=positions, n_kv_heads=kv_heads, init_std=0.3))


def the_cache_changes_nothing(model: Transformer) -> None:
    x = tokens()
    whole = model(x)
    cache = model.new_cache(batch=2)
    pieces = [model(x[:, a:b], cache=cache) for a, b in ((0, 4), (4, 5), (5, 6), (6, 10))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("residual", ["pre", "post"])
def test_zero_branches_make_every_block_the_identity(residual: str) -> None:
    model = build(residual=residual, branch_init="zero")
    x = torch.randn(2, 5, 12)
    for block in model.blocks:
        expected = x if residual == "pre" else block.ff_residual.norm(block.attn_residual.norm(x))
        assert torch.equal(block(x), expected)


def test_gpt2_initialisation() -> None:
    model = Transformer(ModelConfig(d_model=256, n_layers=8, n_heads=4, bias=True))
    block = model.blocks[3]
    assert block.attn.q.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.ff.down.weight.std().item() == pytest.approx(0.02 / 16**0.5, rel=0.02)
    assert block.attn.out.weight.std().item() == pytest.approx(0.02 / 16**0.5, rel=0.02)
    assert not block.attn.out.bias.any()


def test_heads() -> None:
    tied, untied, none = build(head="tied"), build(head="untied"), build(head="none")
    assert tied.head.weight is tied.embedding.weight
    assert untied.head.weight is not untied.embedding.weight
    x = tokens()
    assert tied(x).shape == untied(x).shape == (2, 10, 31)
    assert none(x).shape == (2, 10, 12)
    torch.testing.assert_close(tied(x), tied.states(x) @ tied.embedding.weight.T)


def test_final_norm_only_where_the_connection_leaves_one_out() -> None:
    for residual, kind in REGISTRY.items():
        assert (build(residual=residual).final_norm is not None) == kind.final_norm
    assert build(residual="pre").final_norm is not None
    assert build(residual="post").final_norm is None


def test_every_parameter_gets_a_gradient() -> None:
    for residual, activation in itertools.product(sorted(REGISTRY), ("swiglu", "squared_relu")):
        model = ready(build(residual=residual, activation=activation, bias=True, init_std=0.3), torch.float32)
        model.loss(tokens(), tokens()).backward()
        silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        # A bias on the keys shifts all scores of a query alike, so softmax hides it: its gradient is zero in theory.
        assert [name for name in silent if not name.endswith("attn.k.bias")] == []


@pytest.mark.parametrize("residual", sorted(REGISTRY))
def test_a_model_without_memory_runs(residual: str) -> None:
    with torch.device("meta"):
        model = build(residual=residual)
        assert model(torch.zeros(2, 5, dtype=torch.long)).shape == (2, 5, 31)


def test_too_long_says_so(tiny: Transformer) -> None:
    with pytest.raises(ValueError, match="13 tokens are more than the model's context of 12"):
        tiny(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="without padding"):
        tiny(torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool), tiny.new_cache(1))


def test_a_connection_of_ones_own_is_chosen_by_name() -> None:
    from residuum.model.residual import Residual, register

    @register("half")
    class Half(Residual):
        def forward(self, x, branch, *args):
            return x + 0.5 * branch(x, *args)

    try:
        model = build(residual="half")
        block = model.blocks[0]
        x = torch.randn(1, 4, 12)
        middle = x + 0.5 * block.attn(x)
        torch.testing.assert_close(block(x), middle + 0.5 * block.ff(middle))
    finally:
        del REGISTRY["half"]
