"""DDP and FSDP2 for real: two processes on the CPU, gloo between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch.distributed as dist

# Run as a script, by each of the two processes: the same two trainings, each with and without a monitor.
WORKER = """
import json, sys
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
import residuum

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2,
                        timeout=timedelta(seconds=60))

def train(wrap, path):
    torch.manual_seed(0)
    model = wrap(residuum.Transformer(
        residuum.ModelConfig(vocab_size=31, context=12, d_model=12, n_layers=3, n_heads=3)))
    monitor = residuum.Monitor(model, every=2, to=path) if path else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(3):
        tokens = torch.randint(31, (2, 7), generator=torch.Generator().manual_seed(10 * step + rank))
        if monitor:
            monitor.__enter__()
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        if monitor:
            monitor.__exit__(None)
        optimizer.step()
        optimizer.zero_grad()
    whole = lambda value: value.full_tensor() if hasattr(value, "full_tensor") else value
    return [whole(value) for value in model.state_dict().values()]

def sharded(model):
    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)

for name, wrap in (("ddp", DistributedDataParallel), ("fsdp", sharded)):
    path = folder / f"{name}.jsonl" if rank == 0 else folder / f"{name}-second.jsonl"
    plain, watched = train(wrap, None), train(wrap, path)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True)), name
if rank == 0:  # what one process alone measures at step 1 of the same batch
    dist.barrier()
    dist.destroy_process_group()
    train(lambda model: model, folder / "alone.jsonl")
else:
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("because this PyTorch has no gloo")
    folder = tmp_path_factory.mktemp("distributed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for worker in workers:
        _, said = worker.communicate(timeout=120)
        assert worker.returncode == 0, said
    return {path.stem: [json.loads(x) for x in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_the_first_process_measures_its_own_batch(lines: dict[str, list[dict]], how: str) -> None:
    """The workers have checked already that the weights are those of a training without a monitor."""
    assert [line["step"] for line in lines[how]] == [1, 2]
    assert lines[f"{how}-second"] == []
    together, alone = lines[how][0]["connections"], lines["alone"][0]["connections"]
    assert len(alone) == 6
    for a, b in zip(together, alone, strict=True):
        assert a == {
            k: v if v is None or isinstance(v, str) else pytest.approx(v, rel=1e-4, abs=1e-4) for k, v in b.items()
        }
    assert lines[how][0]["findings"] == lines["alone"][0]["findings"]
