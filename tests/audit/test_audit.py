from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

import residuum
from residuum.audit.rules import RULES
from residuum.model import ModelConfig, Transformer
from residuum.model.residual import REGISTRY

SHAPE = {"vocab_size": 31, "context": 8, "d_model": 12, "n_heads": 3}
TOKENS = torch.arange(16).view(2, 8)


def build(**values) -> Transformer:
    return Transformer(ModelConfig(**{**SHAPE, "n_layers": 2, **values}))


WARNED = {
    "none": {"RS101", "RS203", "RS205"},  # no connection at all
    "tfixup": {"RS109"},  # no norm anywhere: first weights alone hold it
    "mhc": {"RS205"},  # streams that are copies leave what mixes them nothing to learn
}


def codes(audit: residuum.Audit) -> list[str]:
    return [finding.code for finding in audit.findings]


class Stack(nn.Module):
    """Four blocks whose join a test can replace."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(4))
        self.maps = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.embed = nn.Linear(6, 6)
        self.last = nn.LayerNorm(6)

    def join(self, i: int, x: Tensor) -> Tensor:
        return x + self.maps[i](self.norms[i](x)).tanh()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i in range(4):
            x = self.join(i, x)
        return self.last(x)


def audit_with(join) -> residuum.Audit:
    return residuum.audit(type("Faulty", (Stack,), {"join": join})(), torch.randn(3, 6))


def test_the_verb_and_the_room_share_a_name() -> None:
    import residuum.audit
    from residuum.audit import audit

    assert residuum.audit(build(), TOKENS).verdict == audit(build(), TOKENS).verdict == "healthy"


@pytest.mark.parametrize("shape", [{"n_layers": 2}, {"n_layers": 6}, {"n_layers": 4, "d_model": 96}], ids=str)
@pytest.mark.parametrize("residual", sorted(REGISTRY))
def test_published_designs_start_without_a_fault(residual: str, shape: dict[str, int]) -> None:
    torch.manual_seed(0)
    found = residuum.audit(build(residual=residual, **shape), TOKENS).at_least("warning")
    assert {finding.code for finding in found} <= WARNED.get(residual, set())
    assert [finding.code for finding in found if finding.severity == "error"] == ["RS101"] * (residual == "none")


@pytest.mark.parametrize("residual", ["pre", "post"])
def test_healthy_models_have_no_finding(residual: str) -> None:
    audit = residuum.audit(build(residual=residual), TOKENS)
    assert (audit.findings, audit.skipped, audit.verdict) == ([], {}, "healthy")


def test_rs101_no_connection() -> None:
    audit = residuum.audit(build(residual="none"), TOKENS)
    assert codes(audit)[0] == "RS101"
    assert audit.verdict == "errors"
    assert set(audit.skipped) == {"RS103", "RS201", "RS202", "RS303", "RS304"}


def test_rs102_one_norm_forgotten() -> None:
    audit = audit_with(lambda self, i, x: x + self.maps[i](self.norms[i](x) if i != 2 else x).tanh())
    assert "RS102" not in codes(audit)  # one of four is a quarter: too many to be called an oversight

    class Deeper(Stack):
        def forward(self, x: Tensor) -> Tensor:
            for i in (0, 1, 2, 3, 0, 1):
                x = self.join(i, x) if i != 2 else x + self.maps[2](x).tanh()
            return x

    audit = residuum.audit(Deeper(), torch.randn(3, 6))
    (finding,) = [f for f in audit.findings if f.code == "RS102"]
    assert finding.message == "connection 2 (maps.2) is none, but 5 of the stream's 6 connections are pre"
    assert finding.source is not None


def test_rs103_detached_skip() -> None:
    audit = audit_with(lambda self, i, x: (x.detach() if i == 1 else x) + self.maps[i](self.norms[i](x)).tanh())
    (finding,) = [f for f in audit.findings if f.code == "RS103"]
    assert "connection 1 (maps.1)" in finding.message
    assert audit.verdict == "errors"


def test_rs201_vanishing_gradient() -> None:
    audit = audit_with(lambda self, i, x: 0.01 * x + 0.01 * self.maps[i](x))
    (finding,) = [f for f in audit.findings if f.code == "RS201"]
    assert float(finding.message.split(" is ")[1].split()[0]) < 1e-3


def test_rs202_exploding_gradient() -> None:
    assert "RS202" in codes(audit_with(lambda self, i, x: x + 100 * self.maps[i](x)))


def test_rs203_parameter_without_gradient() -> None:
    model = build()
    model.unused = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in range(6))
    audit = residuum.audit(model, TOKENS)
    (finding,) = audit.findings
    assert finding.code == "RS203"
    assert finding.message.startswith("6 parameters get no gradient from next-token cross-entropy: unused.0, unused.1")
    assert finding.message.endswith("and 2 more")
    assert audit.verdict == "warnings"


@pytest.mark.parametrize("linear", ["float", "ternary"])
def test_an_expert_without_tokens_is_no_fault(linear: str) -> None:
    """It ran, on no row."""
    torch.manual_seed(0)
    model = build(n_experts=64, linear=linear, norm="rmsnorm")
    audit = residuum.audit(model, TOKENS, loss=lambda scores: scores.square().sum())  # of every place
    (finding,) = [f for f in audit.findings if f.code == "RS203"]
    assert finding.severity == "info"
    assert all(".experts." in name for name in finding.names)


def test_rs204_not_finite() -> None:
    audit = audit_with(lambda self, i, x: x + self.maps[i](x) * (math.nan if i == 2 else 1))
    (finding,) = [f for f in audit.findings if f.code == "RS204"]
    assert "the write of connection 2 (maps.2)" in finding.message
    content = json.loads(audit.to_json())
    assert content["streams"][0]["residuals"][2]["forward"]["write_rms"] is None
    audit = residuum.audit(Stack(), torch.randn(3, 6), loss=lambda y: y.sum() * math.inf)
    assert "the loss is" in next(f.message for f in audit.findings if f.code == "RS204")
    assert "not finite" not in audit.to_html().split("<script>")[0]


def test_rs301_dead_branch() -> None:
    model = Stack()
    with torch.no_grad():
        for p in model.maps[3].parameters():
            p.mul_(1e-6)
    audit = residuum.audit(model, torch.randn(3, 6))
    assert [(f.code, f.severity) for f in audit.findings] == [("RS301", "warning")]
    # Behind a scale of its own (LayerScale starts at 1e-6) it is how the model begins.
    audit = audit_with(lambda self, i, x: x + self.maps[i](self.norms[i](x)) * (1e-6 if i == 3 else 1))
    assert [(f.code, f.severity) for f in audit.findings] == [("RS301", "info")]


def test_zero_initialised_branches_are_news_and_no_fault() -> None:
    audit = residuum.audit(build(branch_init="zero"), TOKENS)
    assert {f.severity for f in audit.findings if f.code == "RS301"} == {"info"}
    assert len([f for f in audit.findings if f.code == "RS301"]) == 4


def test_rules_are_in_order_and_say_why() -> None:
    assert [rule.code for rule in RULES] == sorted({rule.code for rule in RULES})
    for rule in RULES:
        assert type(rule).__doc__
        assert rule.title
        assert rule.severity in ("info", "warning", "error")


def test_json_follows_its_schema() -> None:
    audit = residuum.audit(build(), TOKENS)
    content = json.loads(audit.to_json())
    assert content["schema"] == "residuum.audit/1"
    assert content["verdict"] == "healthy"
    (stream,) = content["streams"]
    assert (stream["origin"], stream["final_norm"]) == ("embedding", "final_norm")
    first = stream["residuals"][0]
    assert first["module"] == "blocks.0.attn_residual"
    assert set(first["source"]) == {"file", "line", "function"}
    assert first["source"]["function"] == "Pre.forward"
    assert (first["kind"], first["placement"], first["shape"]) == ("identity", "pre", [2, 8, 12])
    assert set(first["forward"]) == {
        "skip_rms", "write_rms", "state_rms", "write_share", "influence", "effective_rank", "outlier", "sampled",
    }  # fmt: skip
    assert set(first["backward"]) == {"arriving", "identity", "branch", "elsewhere", "cosine", "identity_share"}
    assert first["backward"]["identity"] == first["backward"]["arriving"]  # g passes an addition as it is


def test_page_stands_alone() -> None:
    page = residuum.audit(build(), TOKENS).to_html()
    text, _, scripts = page.partition("<script>")
    assert "Healthy: no rule found anything to mend" in text
    assert "residual/pre.py" in text
    assert text.count('class="chart"') == 4
    for reference in ('src="', "<link", "@import", "url("):
        assert reference not in text
    assert "vegaEmbed(" in scripts


@pytest.mark.parametrize("activation", ["squared_relu", "squared_reglu"])
@pytest.mark.parametrize("sub_norm", [True, False])
def test_a_ternary_model_is_healthy_and_its_connections_are_what_they_were(activation: str, sub_norm: bool) -> None:
    """Rounding hides no gradient, and a step that a write is multiplied by is no gate."""
    model = build(linear="ternary", norm="rmsnorm", positions="rotary", activation=activation, sub_norm=sub_norm)
    audit = residuum.audit(model, TOKENS)
    assert {(residual.kind, residual.placement) for residual in audit.graph.residuals} == {("identity", "pre")}
    assert audit.at_least("warning") == []
    assert all(m.backward and m.backward.identity > 0 and m.backward.branch > 0 for m in audit.flow.all_measured)


def test_what_ternary_maps_are_called() -> None:
    class Signs(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            size = self.weight.abs().mean()
            return nn.functional.linear(x, self.weight + (self.weight.sign() * size - self.weight).detach())

    model = build(linear="ternary")
    maps = len(residuum.audit(model, TOKENS).flow.ternary)
    model.blocks[0].ff.up = Signs(12, 48)
    said = residuum.audit(model, TOKENS).ternary
    assert said.startswith(f"{maps - 1} ternary maps, ")
    assert said.endswith("% of the weights 0; 1 binary map (no weight is 0)")


def test_page_escapes_what_it_is_given() -> None:
    model = build()
    model.add_module("<script>alert(1)</script>", nn.Linear(2, 2))
    page = residuum.audit(model, TOKENS).to_html()
    assert "<script>alert(1)" not in page


def test_many_streams_are_all_listed_and_only_some_charted() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.towers = nn.ModuleList(Stack() for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([tower(x) for tower in self.towers])

    audit = residuum.audit(Towers(), torch.randn(3, 6))
    page = audit.to_html().split("<script>")[0]
    assert len(audit.graph.streams) == 6
    assert page.count("<h2>Residual stream") == 6
    assert page.count('class="chart"') == 16
