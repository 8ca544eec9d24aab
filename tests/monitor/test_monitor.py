"""A monitor in somebody else's training loop: what it says is right, and nothing else changes."""

from __future__ import annotations

import copy
import gc
import io
import json
import math
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

import residuum
from residuum.errors import InputError
from residuum.model import Transformer
from residuum.monitor import read_lines

sys.path.insert(0, str(Path(__file__).parent))
from nets import TOKENS, Block, Net, loss_of


def train(model: nn.Module, monitor: residuum.Monitor | None, accumulate: int = 1) -> list[Tensor]:
    """All that a training leaves: weights, buffers, and the next random number."""
    torch.manual_seed(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for tokens in TOKENS:
        if monitor is not None:
            monitor.__enter__()
        for _ in range(accumulate):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, tokens) / accumulate
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if monitor is not None:
            monitor.__exit__(None)
    return [*(value.clone() for value in model.state_dict().values()), torch.rand(())]


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_is_the_same_to_the_bit(checkpoint: bool, accumulate: int) -> None:
    lines: list[dict] = []
    torch.manual_seed(0)
    model = Net(checkpoint)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = train(model, None, accumulate)
    model.load_state_dict(before)
    watched = train(model, residuum.Monitor(model, every=2, to=lines.append), accumulate)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert [line["step"] for line in lines] == [1, 2, 4]
    assert all(len(line["connections"]) == 3 for line in lines)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and not module._forward_hooks_always_called
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_the_numbers_are_those_of_flow(tiny: Transformer) -> None:
    tiny.double()
    tokens = TOKENS[0]

    def loss(scores: Tensor) -> Tensor:
        return F.cross_entropy(scores.flatten(0, 1), tokens.flatten())

    flow = residuum.flow(tiny, tokens, loss=loss)
    monitor = residuum.Monitor(tiny, every=1, to=[].append)
    with monitor:
        value = loss(tiny(tokens))
        value.backward()
        monitor.note(loss=value)
    assert monitor.last is not None and monitor.last["loss"] == flow.loss
    for c, m in zip(monitor.last["connections"], flow.all_measured, strict=True):
        assert (c["stream"], c["index"], c["module"], c["branch"]) == (
            0, m.residual.index, m.residual.module, m.residual.branch,
        )  # fmt: skip
        assert m.backward is not None
        wanted = (m.forward.state_rms, m.forward.write_rms, m.forward.write_share, m.backward.arriving,
                  m.backward.identity, m.backward.branch, m.backward.identity_share, m.backward.cosine)  # fmt: skip
        got = [c[k] for k in ("state_rms", "write_rms", "write_share", "arriving",
                              "identity_path", "branch_path", "identity_share", "cosine")]  # fmt: skip
        assert got == pytest.approx(wanted, rel=1e-12)
    assert [f["code"] for f in monitor.last["findings"]] == [f.code for f in residuum.audit(tiny, tokens).findings]


def test_a_scaled_loss_is_measured_unscaled(tiny: Transformer) -> None:
    class Scaler:
        scale = 1024.0

        def get_scale(self) -> float:
            return self.scale

    lines: list[dict] = []
    scaler = Scaler()
    plain = residuum.Monitor(tiny, every=1, to=lines.append)
    scaled = residuum.Monitor(tiny, every=1, to=lines.append, scaler=scaler)
    with plain:
        tiny.loss(TOKENS[0], TOKENS[0]).backward()
    with scaled:
        (tiny.loss(TOKENS[0], TOKENS[0]) * scaler.scale).backward()
        scaler.scale = 4096.0  # as GradScaler.update does at the end of a step
    for a, b in zip(lines[0]["connections"], lines[1]["connections"], strict=True):
        assert b["arriving"] == pytest.approx(a["arriving"], rel=1e-5)
        assert b["identity_path"] == pytest.approx(a["identity_path"], rel=1e-5)
        assert b["cosine"] == pytest.approx(a["cosine"], abs=1e-5)


def test_a_real_grad_scaler() -> None:
    model = Net()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = residuum.Monitor(model, every=1, to=[].append, scaler=scaler)
    with monitor:
        scaler.scale(loss_of(model, TOKENS[0])).backward()
        scaler.step(optimizer)
        scaler.update()
    assert monitor.last is not None
    assert 0 < monitor.last["connections"][0]["arriving"] < 1


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_models_are_seen_and_not_compiled_again(in_place: bool) -> None:
    import torch._dynamo.testing

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    model = Net().eval()
    compiled = model
    if in_place:
        model.compile(backend=counter)
    else:
        compiled = torch.compile(model, backend=counter)
    loss_of(compiled, TOKENS[0]).backward()
    compilations = counter.frame_count
    assert compilations > 0
    monitor = residuum.Monitor(compiled, every=2, to=[].append)
    for tokens in TOKENS:
        with monitor:
            loss_of(compiled, tokens).backward()
    assert monitor.last is not None and len(monitor.last["connections"]) == 3
    assert monitor.last["connections"][0]["identity_share"] is not None
    assert counter.frame_count == compilations


def test_files_grow_by_whole_lines(tiny: Transformer, tmp_path: Path) -> None:
    path = tmp_path / "new" / "monitor.jsonl"

    def one_step() -> None:
        with residuum.Monitor(tiny, to=path):
            tiny.loss(TOKENS[0], TOKENS[0]).backward()

    one_step()
    path.write_bytes(path.read_bytes() + b'{"step": 2, "conn')  # a kill in the middle of a line
    assert [line["step"] for line in read_lines(path)] == [1]
    one_step()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 1]
    assert set(read_lines(path)[0]) == {"step", "connections", "findings", "skipped"}


def test_a_killed_process_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "monitor.jsonl"
    script = (
        "import torch, residuum\n"
        "config = residuum.ModelConfig(vocab_size=9, context=4, d_model=6, n_layers=2, n_heads=2)\n"
        "model = residuum.Transformer(config)\n"
        f"monitor = residuum.Monitor(model, every=1, to={str(path)!r})\n"
        "x = torch.zeros(1, 4, dtype=torch.long)\n"
        "while True:\n"
        "    with monitor: model.loss(x, x).backward()\n"
        "    print(monitor.step, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 5:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert [line["step"] for line in read_lines(path)][:5] == [1, 2, 3, 4, 5]


def test_not_finite_is_null(tmp_path: Path) -> None:
    model = Net()
    with torch.no_grad():
        model.blocks[1].down.bias.fill_(math.inf)
    path = tmp_path / "m.jsonl"
    monitor = residuum.Monitor(model, to=path)
    with monitor:
        loss = loss_of(model, TOKENS[0])
        loss.backward()
        monitor.note(loss=loss)
    (line,) = read_lines(path)
    assert line["loss"] is None
    assert [c["state_rms"] is None for c in line["connections"]] == [False, True, True]
    assert "RS204" in [finding["code"] for finding in line["findings"]]


class Writer:
    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.seen[f"{tag}@{step}"] = value


class Run:
    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, float], int]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.seen.append((values, step))


def test_tensorboard_and_wandb(tiny: Transformer) -> None:
    writer, run = Writer(), Run()
    for to in (writer, run):
        monitor = residuum.Monitor(tiny, to=to, every=5, start=4)
        with monitor:
            tiny.loss(TOKENS[0], TOKENS[0]).backward()
            monitor.note(lr=0.5)
    assert writer.seen["residuum/lr@5"] == 0.5
    assert 0 < writer.seen["residuum/identity_share/0.000.blocks.0.attn@5"] < 1
    ((values, step),) = run.seen
    assert step == 5 and {f"{tag}@5": value for tag, value in values.items()} == pytest.approx(writer.seen)
    assert all(math.isfinite(value) for value in values.values())


def test_a_real_summary_writer(tiny: Transformer, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="because tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer, residuum.Monitor(tiny, to=writer):
        tiny.loss(TOKENS[0], TOKENS[0]).backward()
    assert any(file.stat().st_size > 500 for file in tmp_path.iterdir())


def test_no_tensor_is_kept_alive(tiny: Transformer) -> None:
    states: list[weakref.ref] = []
    monitor = residuum.Monitor(tiny, to=[].append)
    handle = tiny.blocks[0].register_forward_hook(lambda _module, _args, output: states.append(weakref.ref(output)))
    with monitor:
        loss = tiny.loss(TOKENS[0], TOKENS[0])
        loss.backward()
        monitor.note(loss=loss)
    del loss
    handle.remove()
    gc.collect()
    assert monitor.last is not None and states[0]() is None


def test_our_own_fault_does_not_end_the_training(tiny: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr("residuum.monitor.monitor.judge", broken)
    monitor = residuum.Monitor(tiny, to=[].append)
    said = "step 1 is left out, because measuring it raised ZeroDivisionError: of ours"
    with pytest.warns(UserWarning, match=said), monitor:
        tiny.loss(TOKENS[0], TOKENS[0]).backward()
    assert monitor.last is None and not tiny._forward_hooks


def test_findings_of_a_broken_model() -> None:
    class Detached(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach() + self.down(F.gelu(self.up(self.norm(x))))

    model = Net()
    model.blocks[1] = Detached(5)
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    monitor = residuum.Monitor(model, to=[].append)
    with monitor:
        loss_of(model, TOKENS[0]).backward()
    assert monitor.last is not None
    codes = {finding["code"]: finding for finding in monitor.last["findings"]}
    assert codes["RS103"]["module"] == "blocks.1" and codes["RS103"]["severity"] == "error"
    assert "unused" in codes["RS203"]["message"]


def test_a_branch_read_from_outside_has_no_parts() -> None:
    class Auxiliary(Net):
        def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
            x = self.embedding(tokens)
            inner = self.blocks[0].up(self.blocks[0].norm(x))
            x = x + self.blocks[0].down(F.gelu(inner))
            return self.head(self.blocks[1](x)), inner.square().mean()

    model = Auxiliary()
    monitor = residuum.Monitor(model, to=[].append)
    with monitor:
        scores, auxiliary = model(TOKENS[0])
        (F.cross_entropy(scores.flatten(0, 1), TOKENS[0].flatten()) + auxiliary).backward()
    assert monitor.last is not None
    first, second = monitor.last["connections"]
    assert first["identity_share"] is None and first["state_rms"] > 0
    assert second["identity_share"] is not None


def test_an_unmeasured_forward_pass_is_not_the_one(tiny: Transformer) -> None:
    """An evaluation without gradients inside the step."""
    monitor = residuum.Monitor(tiny, to=[].append)
    with monitor:
        with torch.no_grad():
            tiny(TOKENS[1])
        tiny.loss(TOKENS[0], TOKENS[0]).backward()
    assert monitor.last is not None and len(monitor.last["connections"]) == 6


def test_what_raises_inside_comes_out_and_leaves_nothing(tiny: Transformer) -> None:
    monitor = residuum.Monitor(tiny, every=1, to=[].append)
    with pytest.raises(ValueError, match="more than the model's context"), monitor:
        tiny(torch.zeros(1, 99, dtype=torch.long))
    assert monitor.last is None and not tiny._forward_hooks
    assert not torch.overrides._get_current_function_mode_stack()
    with monitor:
        tiny.loss(TOKENS[0], TOKENS[0]).backward()
    assert monitor.last is not None and monitor.last["step"] == 2


def test_a_forward_pass_that_raised_may_be_tried_again(tiny: Transformer) -> None:
    monitor = residuum.Monitor(tiny, to=[].append)
    with monitor:
        with pytest.raises(ValueError, match="more than the model's context"):
            tiny(torch.zeros(1, 99, dtype=torch.long))
        tiny.loss(TOKENS[0], TOKENS[0]).backward()
    assert monitor.last is not None and len(monitor.last["connections"]) == 6


def test_left_out_steps_are_said_once(tiny: Transformer) -> None:
    monitor = residuum.Monitor(tiny, every=1, to=[].append)
    said = r"step 1 is left out.*no gradient came back through Transformer.*backward"
    with pytest.warns(UserWarning, match=said), monitor:
        tiny.loss(TOKENS[0], TOKENS[0])
    with monitor:  # warnings are errors here
        tiny.loss(TOKENS[0], TOKENS[0])
    said = "Transformer was not called with gradients: give Monitor the module that"
    with pytest.warns(UserWarning, match=said), monitor:
        pass
    other = nn.Linear(2, 2)
    with monitor:  # a loss of another model
        tiny(TOKENS[0])
        other(torch.ones(1, 2)).sum().backward()
    assert monitor.last is None


def test_a_full_disk_does_not_end_the_training(tiny: Transformer) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("because this system has no /dev/full")
    said = "cannot write: No space left on device"
    with pytest.warns(UserWarning, match=said), residuum.Monitor(tiny, to="/dev/full"):
        tiny.loss(TOKENS[0], TOKENS[0]).backward()


def test_a_destination_that_raises_does_not_end_the_training(tiny: Transformer) -> None:
    def refuse(line: dict) -> None:
        raise ValueError(f"no place for step {line['step']}")

    monitor = residuum.Monitor(tiny, every=1, to=refuse)
    with pytest.warns(UserWarning, match="writing to `to` raised ValueError: no place for step 1"), monitor:
        tiny.loss(TOKENS[0], TOKENS[0]).backward()
    with monitor:  # said once: warnings are errors here
        tiny.loss(TOKENS[0], TOKENS[0]).backward()
    assert monitor.last is not None and monitor.last["step"] == 2


def test_of_two_backward_passes_the_first_is_measured(tiny: Transformer) -> None:
    monitor = residuum.Monitor(tiny, every=1, to=[].append)
    with monitor:
        tiny.loss(TOKENS[0], TOKENS[0]).backward()
    first = monitor.last
    with monitor:
        loss = tiny.loss(TOKENS[0], TOKENS[0])
        loss.backward(retain_graph=True)
        (1000 * loss).backward()
    assert first is not None and monitor.last is not None
    assert monitor.last["connections"] == first["connections"]


def test_a_copy_made_inside_the_block_is_deaf(tiny: Transformer) -> None:
    monitor = residuum.Monitor(tiny, every=1, to=[].append)
    with monitor:
        early = copy.deepcopy(tiny)
        early.loss(TOKENS[0], TOKENS[0]).backward()
        assert monitor._listener is not None and not monitor._listener.called
        tiny.loss(TOKENS[0], TOKENS[0]).backward()
        late = copy.deepcopy(tiny)
        torch.save(tiny, io.BytesIO())
    assert monitor.last is not None
    late.loss(TOKENS[0], TOKENS[0]).backward()


def test_bad_input(tiny: Transformer, tmp_path: Path) -> None:
    for every in (0, -1, 2.5, True, "10"):
        with pytest.raises(InputError, match=r"every is .*: give a whole number of steps, at least 1"):
            residuum.Monitor(tiny, every=every, to=[].append)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="start is -1"):
        residuum.Monitor(tiny, start=-1, to=[].append)
    with pytest.raises(InputError, match=r"cannot write .*: Is a directory: choose another place"):
        residuum.Monitor(tiny, to=tmp_path)
    with pytest.raises(InputError, match="to is 3: give a path, a SummaryWriter"):
        residuum.Monitor(tiny, to=3)
    with pytest.raises(InputError, match=r"scaler is 2\.0: give the torch\.amp\.GradScaler"):
        residuum.Monitor(tiny, scaler=2.0, to=[].append)
    with pytest.raises(residuum.TraceError, match=r"give a torch\.nn\.Module, not 'gpt2'"):
        residuum.Monitor("gpt2")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="use DistributedDataParallel"):
        residuum.Monitor(nn.DataParallel(tiny), to=[].append)
    monitor = residuum.Monitor(tiny, to=[].append)
    with monitor:
        tiny.loss(TOKENS[0], TOKENS[0]).backward()
        for value in ("low", torch.ones(2), None):
            with pytest.raises(InputError, match=r"note: loss is .*: give one number"):
                monitor.note(loss=value)
        with pytest.raises(InputError, match="note: the line has a step of its own"):
            monitor.note(step=3)
        with pytest.raises(InputError, match="inside a step already: leave its block"):
            monitor.__enter__()
    assert monitor.last is not None and monitor.step == 1
