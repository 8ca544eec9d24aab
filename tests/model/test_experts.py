"""A mixture of experts against a loop over tokens, its balance term by hand, and both engines with it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import residuum
from residuum.cli import main
from residuum.engine import make_engine
from residuum.engine.check.cases import CLEAR, Case, cases, config, nearest_tie, ready, tokens
from residuum.engine.check.measure import compare
from residuum.engine.explicit import Explicit
from residuum.errors import InputError
from residuum.model import ModelConfig, Sampling, Transformer, generate
from residuum.model.cross_entropy import cross_entropy
from residuum.model.experts import Balance, MixtureOfExperts
from residuum.model.feedforward import make_feedforward
from residuum.stream.flow import flow


def mixture(kind: torch.dtype = torch.float64, **values: Any) -> MixtureOfExperts:
    part = ready(make_feedforward(config(**{"n_experts": 4, **values})), kind)
    assert isinstance(part, MixtureOfExperts)
    return part


def transformer(kind: torch.dtype = torch.float64, **values: Any) -> Transformer:
    return ready(Transformer(config(**{"n_experts": 4, "balance": 0.5, **values})), kind)


def by_token(part: MixtureOfExperts, x: Tensor) -> tuple[Tensor, Tensor]:
    """y and E Σ f P, one token and one expert at a time."""
    n_experts, rows = len(part.experts), x.flatten(0, 1)
    y, f, mean_p = [], [0.0] * n_experts, torch.zeros(n_experts, dtype=x.dtype)
    for row in rows:
        p = torch.softmax(part.router.weight @ row, 0)
        chosen = sorted(range(n_experts), key=lambda e: -p[e].item())[: part.k]
        total = sum(p[e] for e in chosen) if part.k > 1 else 1.0
        y.append(sum(p[e] / total * part.experts[e](row[None])[0] for e in chosen))
        for e in chosen:
            f[e] += 1 / (part.k * len(rows))
        mean_p = mean_p + p / len(rows)
    return torch.stack(y).view_as(x), n_experts * sum(f[e] * mean_p[e] for e in range(n_experts))


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_it_is_the_loop_over_tokens(activation: str, k: int) -> None:
    part, x = mixture(activation=activation, experts_per_token=k, bias=True), torch.randn(3, 7, 12, dtype=torch.float64)
    wanted = [x.requires_grad_(), *part.parameters()]
    with Balance([part]) as balance:
        y = part(x)
    expected, imbalance = by_token(part, x)
    torch.testing.assert_close(y, expected)
    loss, expected_loss = balance.added_to(y.square().sum()), expected.square().sum() + part.balance * imbalance
    torch.testing.assert_close(loss, expected_loss)
    ours, theirs = (torch.autograd.grad(each, wanted, materialize_grads=True) for each in (loss, expected_loss))
    for gradient, expected_gradient in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


def imbalance(part: MixtureOfExperts, x: Tensor) -> float:
    with Balance([part]) as balance:
        part(x)
    (term,) = balance.terms.values()
    return term.item()


def test_the_balance_term_by_hand() -> None:
    """Of three tokens two have p = (3/4, 1/4), one (1/5, 4/5): f = (2/3, 1/3) and P = (17/30, 13/30)."""
    part = mixture(n_experts=2, experts_per_token=1, d_model=2, n_heads=1)
    with torch.no_grad():
        part.router.weight.copy_(torch.eye(2))
    x = torch.tensor([[[3.0, 1.0], [3.0, 1.0], [1.0, 4.0]]], dtype=torch.float64).log()
    assert imbalance(part, x) == pytest.approx(2 * (2 / 3 * 17 / 30 + 1 / 3 * 13 / 30))
    assert part.shares.tolist() == pytest.approx([2 / 3, 1 / 3])


def test_even_use_is_one_and_one_expert_for_all_is_their_number() -> None:
    part = mixture(experts_per_token=1, d_model=4, n_heads=1)
    with torch.no_grad():
        part.router.weight.copy_(torch.eye(4) * 100)
    assert imbalance(part, torch.eye(4, dtype=torch.float64)[None]) == pytest.approx(1)
    one = torch.zeros(1, 9, 4, dtype=torch.float64)
    one[..., 2] = 1
    assert imbalance(part, one) == pytest.approx(4)


def test_one_is_no_lower_bound() -> None:
    """Most tokens barely choose an expert that the others are far from: E Σ f P = 2 (¾ · 0.3825 + ¼ · 0.6175)."""
    part = mixture(n_experts=2, experts_per_token=1, d_model=2, n_heads=1)
    with torch.no_grad():
        part.router.weight.copy_(torch.eye(2))
    x = torch.tensor([[[0.51, 0.49]] * 3 + [[1e-12, 1.0]]], dtype=torch.float64).log()
    assert imbalance(part, x) == pytest.approx(0.8825)


@pytest.mark.parametrize("engine", ["autograd", "explicit"])
def test_an_expert_that_none_chose_has_gradients_of_zero(engine: str) -> None:
    model = transformer(bias=True, n_layers=1, activation="swiglu", residual="post", experts_per_token=1)
    with torch.no_grad():
        model.blocks[0].attn_residual.norm.bias.fill_(1)  # all tokens point the same way
        model.blocks[0].ff.router.weight.copy_(torch.arange(4.0).unsqueeze(1).expand(4, 12))
    make_engine(engine).loss_and_grads(model, tokens())
    of_experts = [[p.grad for p in expert.parameters()] for expert in model.blocks[0].ff.experts]
    assert all(gradient is not None for gradients in of_experts for gradient in gradients)
    used = [any(gradient.any() for gradient in gradients) for gradients in of_experts]
    assert used[3]
    assert not all(used)


ENGINES = [Explicit(), Explicit("block-inputs"), Explicit("every-2")]


def gradients_of(engine: Any, model: Transformer, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(5)
    losses = [engine.loss_and_grads(model, batch, scale=1 / len(batches)) for batch in batches]
    return {"loss": torch.stack(losses), **{name: p.grad.clone() for name, p in model.named_parameters()}}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"experts_per_token": 1, "activation": "swiglu", "norm": "rmsnorm", "positions": "rotary", "head": "untied"},
        {"experts_per_token": 3, "dropout": 0.3, "bias": True, "residual": "post"},
        {"causal": False, "dropout": 0.3, "balance": 0.0},
        {"residual": "none", "n_experts": 2},
    ],
    ids=str,
)
def test_engines_agree_whatever_is_kept_over_many_batches(values: dict[str, Any]) -> None:
    model, batches = transformer(n_layers=3, **values), [tokens(), tokens(7), tokens()]
    expected = gradients_of(make_engine("autograd"), model, batches)
    for engine in ENGINES:
        row = compare("", engine.segment or "everything", "autograd", gradients_of(engine, model, batches), expected)
        assert row.ok, row


@pytest.mark.parametrize("engine", ["autograd", "explicit"])
def test_the_loss_is_cross_entropy_and_every_layers_term(engine: str) -> None:
    model, (read, wanted) = transformer(), tokens()
    loss = make_engine(engine).loss_and_grads(model, (read, wanted))
    terms = [block.ff.imbalance for block in model.blocks]
    assert not any(term.requires_grad for term in terms)
    torch.testing.assert_close(loss, cross_entropy(model(read), wanted).detach() + 0.5 * sum(terms))


def test_the_balance_term_reaches_the_router_and_nothing_after_it() -> None:
    model, batch = transformer(n_layers=1, residual="post"), tokens()
    with_it = gradients_of(Explicit(), model, [batch])
    model.blocks[0].ff.balance = 0.0
    without = gradients_of(Explicit(), model, [batch])
    changed = {name for name, gradient in with_it.items() if not torch.equal(gradient, without[name])}
    assert {"loss", "blocks.0.ff.router.weight", "blocks.0.attn.out.weight"} <= changed
    assert not any("experts" in name or "ff_residual" in name for name in changed)


def test_no_graph_stays_and_who_asks_for_scores_is_asked_for_no_balance() -> None:
    model, (read, wanted) = transformer(), tokens()
    model(read)
    assert all(block.ff.imbalance is None for block in model.blocks)
    model.loss(read, wanted)
    assert all(block.ff.asked is None for block in model.blocks)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(read), model(read))
    with pytest.raises(IndexError):
        model.loss(read + 31, wanted)
    assert all(block.ff.asked is None for block in model.blocks)


@pytest.mark.parametrize("engine", ["autograd", "explicit"])
def test_a_frozen_router_and_a_frozen_expert_receive_nothing(engine: str) -> None:
    model, batch = transformer(), tokens()
    expected = gradients_of(make_engine(engine), model, [batch])
    frozen = ["blocks.0.ff.router.weight", "blocks.1.ff.experts.2.up.weight"]
    model.zero_grad()
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    make_engine(engine).loss_and_grads(model, batch)
    assert [name for name, p in model.named_parameters() if p.grad is None] == frozen
    for name, p in model.named_parameters():
        if name not in frozen:
            torch.testing.assert_close(p.grad, expected[name], msg=name)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["autocast", "weights"])
def test_half_precision_routes_in_float32(weights: torch.dtype) -> None:
    part = mixture(torch.float32, init_std=1.0).to(weights)
    x = torch.randn(4, 32, 12, dtype=weights)
    dy = torch.randn(4, 32, 12)
    truth = copy.deepcopy(part).to(torch.float64)
    exact = x.double().requires_grad_()
    with Balance([truth]) as balance:
        truth_y = truth(exact)
    balance.added_to((truth_y * dy).sum()).backward()
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
        with Balance([part]) as balance:
            y = part(leaf)
        balance.added_to((y * dy).sum()).backward()
        theirs = {"x": leaf.grad, **{name: p.grad for name, p in part.named_parameters()}}
        part.zero_grad()
        with torch.no_grad(), Balance([part]):
            y, saved = part.explicit_forward(x)
            assert saved[1].p.dtype == torch.float32
            dx = part.explicit_backward(dy.to(y.dtype), saved)
    assert torch.equal(saved[1].chosen, truth._route(x.double().flatten(0, 1)).chosen)
    assert y.dtype == x.dtype
    assert {written.dtype for written, _ in saved[2]} == {torch.bfloat16}  # half precision was at work
    mine = {"x": dx, **{name: p.grad for name, p in part.named_parameters()}}
    wanted = {"x": exact.grad, **{name: p.grad for name, p in truth.named_parameters()}}
    for name, expected in wanted.items():
        assert mine[name].dtype == theirs[name].dtype == weights
        errors = [(found[name].double() - expected).norm() / expected.norm() for found in (mine, theirs)]
        assert errors[0] <= max(1.5 * errors[1], 0.01), (name, errors)
        assert errors[0] < 0.05, (name, errors)


@pytest.mark.parametrize(
    "case",
    [case for case in cases() if case.part == "experts" or case.name.startswith("experts")],
    ids=lambda case: case.name,
)
@pytest.mark.parametrize("kind", [torch.float64, torch.float32], ids=str)
def test_no_choice_that_is_checked_lies_near_another(case: Case, kind: torch.dtype) -> None:
    """And what finite differences move changes none."""
    pair = case.make(kind)
    margin = nearest_tie(pair)
    assert margin >= CLEAR
    assert (margin == float("inf")) == (case.name == "all-experts")
    with torch.no_grad():
        for tensor in pair.tensors.values():
            tensor += 1e-4 * torch.randn_like(tensor)  # twice the step of the differences, and all of them at once
    if margin < float("inf"):
        assert 0 < abs(nearest_tie(pair) - margin) < CLEAR


def test_generation_with_a_cache_equals_without() -> None:
    model = transformer(torch.float64, context=12).eval()
    read = torch.randint(31, (2, 10))
    cache = model.new_cache(batch=2)
    pieces = [model(read[:, a:b], cache=cache) for a, b in ((0, 4), (4, 5), (5, 10))]
    torch.testing.assert_close(torch.cat(pieces, 1), model(read))
    written = list(generate(model, [3], 8, Sampling(0)))
    seen = [3]
    for token in written:
        assert token == int(model(torch.tensor([seen]))[0, -1].argmax())
        seen.append(token)


def test_training_evens_out_what_began_uneven() -> None:
    starts, ends = [], []
    for balance in (0.0, 0.1):
        torch.manual_seed(0)
        shape = config(n_layers=1, n_experts=4, experts_per_token=1, balance=balance, residual="post", bias=True)
        model, read = Transformer(shape), torch.randint(31, (8, 9))
        with torch.no_grad():  # all tokens point one way, and expert 2 with them
            model.blocks[0].attn_residual.norm.bias.fill_(1)
            model.blocks[0].ff.router.weight[2] += 0.5
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        used = []
        for _ in range(40):
            optimizer.zero_grad()
            make_engine("explicit").loss_and_grads(model, (read, read.roll(1)))
            optimizer.step()
            used.append(model.blocks[0].ff.imbalance.item())
        starts.append(used[0])
        ends.append(used[-1])
    assert starts[0] == starts[1] > 3.5
    assert ends[0] > 3.5  # nothing else evens them out
    assert ends[1] < 1.5


def test_the_first_weights_are_a_feed_forwards() -> None:
    part = make_feedforward(ModelConfig(d_model=128, n_heads=1, n_layers=8, n_experts=16))
    assert part.router.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for expert in part.experts:
        assert expert.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert expert.down.weight.std().item() == pytest.approx(0.02 / 16**0.5, rel=0.05)


def test_each_connection_is_found_and_both_parts_of_its_gradient_measured() -> None:
    for residual in ("pre", "post"):
        model, (read, wanted) = transformer(n_layers=3, residual=residual), tokens()
        graph = residuum.trace(model, read)
        (stream,) = graph.streams
        assert [(r.kind, r.placement) for r in stream.residuals] == [("identity", residual)] * 6
        assert [r.branch for r in stream.residuals] == [
            f"blocks.{i}.{part}" for i in range(3) for part in ("attn", "ff")
        ]
        measured = flow(model, read, loss=lambda scores: cross_entropy(scores, wanted)).all_measured  # noqa: B023
        for block in model.blocks:
            block.ff.balance = 0.0  # which flow's loss has not
        _, parts = Explicit().loss_and_grads(model, (read, wanted), flow=True)
        for part, outside in zip(parts, measured, strict=True):
            assert part.identity.norm().item() == pytest.approx(outside.backward.identity, rel=1e-10)
            assert part.branch.norm().item() == pytest.approx(outside.backward.branch, rel=1e-10)
            assert part.branch.any()


def test_the_structure_is_found_on_meta_tensors() -> None:
    with torch.device("meta"):
        model = Transformer(config(n_experts=4, experts_per_token=3)).eval()
    (stream,) = residuum.trace(model, torch.zeros(2, 5, dtype=torch.long, device="meta")).streams
    assert len(stream.residuals) == 4


def test_a_compiled_pass_is_refused() -> None:
    model = transformer(torch.float32)
    with pytest.raises(InputError, match=r"^run\.compile .* or set model\.n_experts to 1$"):
        Explicit(compiled=True).check(model.config)
    with pytest.raises(InputError, match=r"^run\.compile"):
        Explicit(compiled=True).loss_and_grads(model, tokens())


RECIPE = """
[run]
steps = 2
eval_every = 2
eval_tokens = 100
log_every = 1
sample_tokens = 4
[data]
source = "{source}"
held_out = 0.3
[model]
context = 16
d_model = 12
n_layers = 2
n_heads = 3
dropout = 0.2
n_experts = 4
balance = 0.3
[optim]
batch_size = 3
accumulate = 2
warmup = 1
"""


def test_a_run_says_how_evenly_and_scores_text_without_it(
    text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.format(source=text_folder))
    runs = {}
    for engine in ("autograd", "explicit"):
        run = tmp_path / engine
        assert main(["train", str(recipe), "--run.dir", str(run), "--engine", engine]) == 0
        runs[engine] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
        for line in runs[engine]:
            assert 1 < line["imbalance"] < 4
            assert [sum(shares) for shares in line["expert_shares"]] == pytest.approx([1, 1])
            assert all(len(shares) == 4 for shares in line["expert_shares"])
            nats = line["train_bits_per_byte"] * torch.tensor(2.0).log().item()  # each token is a byte
            assert line["loss"] == pytest.approx(nats + 2 * 0.3 * line["imbalance"], rel=1e-5)
    for ours, theirs in zip(runs["explicit"], runs["autograd"], strict=True):
        for key in ("loss", "grad_norm", "imbalance", "train_bits_per_byte"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5), key
        assert ours["expert_shares"] == [pytest.approx(shares) for shares in theirs["expert_shares"]]
    page = (tmp_path / "explicit" / "report.html").read_text()
    assert "Mixture of experts" in page and "of its block&#39;s choices" in page
    assert "of their block's choices, 25.0% is even" in capsys.readouterr().out
    held_out = runs["explicit"][-1]["bits_per_byte"]
    assert held_out == pytest.approx(8, abs=0.2)  # an untrained model's; with 0.3 nats a layer it would be 8.9


def test_flags_of_a_recipe(text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data.source", str(text_folder), "--data.tokenizer", "byte", "--data.held-out", "0.3"]
    flags += ["--model.context", "16", "--model.d-model", "12", "--model.n-heads", "3", "--model.n-layers", "1"]
    flags += [
        "--run.steps",
        "2",
        "--run.sample-tokens",
        "0",
        "--run.eval-tokens",
        "100",
        "--run.dir",
        str(tmp_path / "r"),
    ]
    assert main(["train", "quick", *flags, "--model.n-experts", "4", "--model.experts-per-token", "1"]) == 0
    assert "n_experts = 4\nexperts_per_token = 1\n" in (tmp_path / "r" / "recipe.toml").read_text()
    capsys.readouterr()
    other = ["--run.dir", str(tmp_path / "s"), "--model.n-experts", "4"]
    assert main(["train", "quick", *flags, *other, "--engine", "explicit", "--run.compile"]) == 2
    assert capsys.readouterr().err.startswith("residuum: run.compile makes one graph for every batch")
    assert main(["train", "quick", *flags, *other, "--engine", "scalar"]) == 2
    assert "engine = 'scalar' has no model." in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
