"""Compiled code is kept where there is a place for it, and does without where there is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import residuum

pytest.importorskip("numba", reason="because the extra `packed` is not installed")

SCRIPT = "import sys; sys.path.insert(0, sys.argv[1]); import kernels; print(kernels.forward.stats.cache_path)"
OBEY = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
"""Has root keep to permissions like everybody else."""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The compiled file alone, in a folder that may not be written to."""
    folder = tmp_path / "installed"
    folder.mkdir()
    shutil.copy(Path(residuum.__file__).parent / "packed" / "kernels.py", folder)
    folder.chmod(0o555)
    return folder


def cache_path(installed: Path, home: Path) -> str:
    """Where compiled code is kept by a user who may not write to `installed`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))} | {"HOME": str(home)}
    obey = OBEY if os.geteuid() == 0 else []
    if obey and (not shutil.which(obey[0]) or subprocess.run([*obey, "true"], capture_output=True).returncode):
        pytest.skip("because root may write anywhere, and setpriv cannot keep it from doing so")
    command = [*obey, sys.executable, "-B", "-c", SCRIPT, str(installed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(os.name != "posix", reason="because other systems have other permissions")
def test_a_package_that_is_read_only_is_compiled_for_the_user(installed, tmp_path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert cache_path(installed, home).startswith(str(home))


@pytest.mark.skipif(os.name != "posix", reason="because other systems have other permissions")
def test_without_a_place_to_write_nothing_is_kept(installed, tmp_path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o555)
    assert cache_path(installed, home) == "None"
