"""Every planted fault is caught by its rule, on every architecture where it can be planted: `make faults`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import residuum
from residuum.audit import Audit, judge
from residuum.audit.finding import Evidence
from residuum.stream import flow

sys.path.insert(0, str(Path(__file__).parent))
import plant

from architectures import ARCHITECTURES, LAYERS

pytestmark = pytest.mark.faults

ALL = tuple(name for name in ARCHITECTURES if name != "ours_post")
PRE = ("ours", "gpt2", "llama", "vit", "t5", "torch_pre", "mamba", "by_hand")
POST = ("bert", "torch", "ours_post")
# Several sub-modules stand in one block, and the block itself reads and returns the state.
BLOCKS = ("ours", "gpt2", "llama", "vit", "t5", "torch_pre", "mamba")


@dataclass(frozen=True)
class Fault:
    """A mistake, the rule that must catch it, and where it can be made."""

    plant: plant.Planter
    code: str
    architectures: tuple[str, ...] = ALL
    layers: int = LAYERS
    warmup: int | None = None
    structure: bool = False
    """Whether the structure alone shows it."""


one, every, onwards = plant.join_one, plant.join_all, plant.join_from

FAULTS = {
    "connection removed": Fault(one(plant.removed), "RS104", structure=True),
    "all connections removed": Fault(every(plant.removed), "RS101", structure=True),
    "skip detached": Fault(one(plant.detached), "RS103", structure=True),
    "all skips detached": Fault(every(plant.detached), "RS103", structure=True),
    "state detached": Fault(one(plant.detached_after), "RS103", structure=True),
    "skip times 0": Fault(one(plant.times(0)), "RS103", structure=True),
    "skip times a learned 0": Fault(one(plant.learned_zero), "RS103"),
    "skip under no_grad": Fault(one(plant.without_grad), "RS103"),
    "dropout on the skip": Fault(one(plant.dropped), "RS110", structure=True),
    "dropout on the skip, switched off": Fault(one(plant.dropped_in_eval), "RS110", structure=True),
    "dropout on the sum": Fault(one(plant.dropped_together), "RS110", structure=True),
    "stochastic depth on the skip": Fault(one(plant.stochastic_depth), "RS110", structure=True),
    "skip scaled in one block": Fault(one(plant.times(0.5)), "RS111", structure=True),
    "skip flipped": Fault(one(plant.flipped), "RS111", structure=True),
    "state through relu": Fault(
        one(plant.bent_after), "RS111", tuple(name for name in ALL if name != "resnet"), structure=True
    ),
    "norm removed from one branch": Fault(plant.norm_removed, "RS102", PRE, structure=True),
    "norm moved behind one sum": Fault(plant.norm_moved_behind, "RS102", PRE, structure=True),
    "norm missing behind one sum": Fault(plant.norm_moved_before, "RS102", POST, structure=True),
    "stream normalised in one block": Fault(plant.stream_normed, "RS107", BLOCKS, structure=True),
    "norm behind one sum": Fault(one(plant.normed_after), "RS107", PRE, structure=True),
    "norm behind the read-out": Fault(
        plant.norm_behind_readout, "RS107", ("ours", "gpt2", "llama", "vit", "t5", "by_hand"), structure=True
    ),
    "final norm removed": Fault(
        plant.no_final_norm, "RS106", ("ours", "gpt2", "llama", "vit", "t5", "torch_pre", "by_hand"), structure=True
    ),
    "all norms removed": Fault(plant.no_norms, "RS109", structure=True),
    "post-norm 16 deep without warm-up": Fault(plant.none_at_all, "RS108", POST, layers=16, warmup=0, structure=True),
    "stream widened": Fault(
        plant.widened, "RS105", ("ours", "gpt2", "llama", "bert", "vit", "torch", "torch_pre"), structure=True
    ),
    # Mamba's norms undo the shrinking: its gradient does not vanish.
    "skips shrunk": Fault(every(plant.times(0.1)), "RS201", ("ours", "gpt2", "t5")),
    "skips amplified": Fault(every(plant.times(10)), "RS202", (*PRE, "resnet")),
    # Llama's and Mamba's gated products square what explodes: there it overflows, which is RS204's.
    "exploding initialisation": Fault(
        plant.exploding_init,
        "RS202",
        ("ours", "ours_post", "gpt2", "bert", "vit", "t5", "resnet", "torch", "torch_pre", "by_hand"),
    ),
    "parameter never used": Fault(plant.never_used, "RS203"),
    "branch detached": Fault(one(plant.write_detached), "RS203"),
    "NaN in weights": Fault(plant.nan_weights, "RS204"),
    "-inf in weights": Fault(plant.infinite_weights, "RS204"),
    "NaN in backward only": Fault(one(plant.nan_in_backward), "RS204"),
    "overflow in half precision": Fault(one(plant.overflow_in_half), "RS204"),
    "tiny gradient": Fault(plant.tiny_gradient, "RS205"),
    "block frozen": Fault(plant.frozen_block, "RS206", tuple(name for name in ALL if name != "by_hand")),
    "branch decayed to nothing": Fault(plant.dead, "RS301"),
    "branch dominates": Fault(plant.dominating, "RS302"),
    "stream grows": Fault(every(plant.as_large_as_the_skip), "RS303", PRE),
    "positions become alike": Fault(one(plant.one_direction), "RS304", (*PRE, "bert", "ours_post")),
    "one channel takes over": Fault(onwards(plant.one_channel), "RS305"),
    "branch does next to nothing": Fault(plant.redundant, "RS306"),
    "one block not the identity at the start": Fault(plant.all_but_one_zero, "RS307"),
    "adapter does nothing": Fault(
        plant.negligible_adapter, "RS308", ("llama", "bert", "vit", "t5", "mamba", "by_hand")
    ),
    "ternary layer collapsed": Fault(plant.collapsed_ternary, "RS309"),
    "ternary layer without its estimator": Fault(plant.ternary_without_estimator, "RS207"),
    "ternary layer with an outlier": Fault(plant.ternary_with_an_outlier, "RS310"),
    "ternary layer with small rows": Fault(
        plant.ternary_with_small_rows,
        "RS311",
        tuple(name for name in ALL if name not in ("gpt2", "resnet")),  # GPT-2's rows are inputs
    ),
}
CASES = [(fault, name) for fault, each in FAULTS.items() for name in each.architectures]


def audit(name: str, fault: Fault, structure: bool = False) -> Audit:
    torch.manual_seed(0)
    model, inputs = ARCHITECTURES[name].build(fault.layers)
    model = fault.plant(model, inputs) or model
    if structure:
        return judge(Evidence(residuum.trace(model, **inputs), warmup_steps=fault.warmup), name)
    measured = flow(model, **inputs)
    return judge(Evidence(measured.graph, measured, warmup_steps=fault.warmup), name)


@pytest.mark.parametrize(("fault", "name"), CASES)
def test_fault_is_caught_by_its_rule(fault: str, name: str) -> None:
    found = audit(name, FAULTS[fault])
    assert FAULTS[fault].code in {finding.code for finding in found.findings}, found.findings


@pytest.mark.parametrize(("fault", "name"), [case for case in CASES if FAULTS[case[0]].structure])
def test_fault_is_seen_in_the_structure_alone(fault: str, name: str) -> None:
    found = audit(name, FAULTS[fault], structure=True)
    assert FAULTS[fault].code in {finding.code for finding in found.findings}, found.findings


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_healthy_original_has_no_error_and_no_fault_of_the_table(name: str, training: bool) -> None:
    found = audit(name, Fault(lambda model, _: model.train(training), ""))
    assert [len(stream.residuals) for stream in found.graph.streams] == ARCHITECTURES[name].connections
    assert found.at_least("error") == []
    planted_here = {FAULTS[fault].code for fault, where in CASES if where == name}
    assert not {finding.code for finding in found.at_least("warning")} & planted_here


def test_the_table_is_as_wide_as_promised() -> None:
    assert len(FAULTS) >= 25
    assert all(len(fault.architectures) >= 3 for fault in FAULTS.values())
