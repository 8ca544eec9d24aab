"""What a process does with the memory that it frees."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from residuum.train.memory import keep_freed_memory
agreed = {keep} and keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**20) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(int(agreed), min(faults() for _ in range(5)))
"""


def faults_of_a_step(keep: bool) -> tuple[int, int]:
    """Whether freed memory is kept, and the least page faults of several steps that write 32 MiB and free them.

    glibc begins with the threshold given here, and moves one that is not given by what it happens to see.
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(keep=keep)], env=environment, capture_output=True, text=True, check=True
    )
    agreed, faults = done.stdout.split()
    return int(agreed), int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is asked to keep freed memory")
def test_freed_memory_is_there_for_the_next_step() -> None:
    agreed, faults = faults_of_a_step(keep=True)
    if not agreed:
        pytest.skip("this C library has no mallopt")
    assert faults < 100 < 1000 < faults_of_a_step(keep=False)[1]
