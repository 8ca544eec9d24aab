"""Experiments are found by name, in other processes too."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    path = [str(HERE), str(Path(__file__).parents[2] / "src")]
    monkeypatch.setenv("PYTHONPATH", ":".join(path))
