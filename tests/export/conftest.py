"""transformers without its compiler: what is compared are numbers, not who computed them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The library, quiet, uncompiled, and with no network to reach for."""
    library = pytest.importorskip("transformers", reason="because the extra hf is not installed")
    from torch._dynamo import config

    monkeypatch.setattr("socket.socket.connect", _refuse)
    logging = library.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    with config.patch(disable=True):
        yield library
    logging.set_verbosity(level)
    logging.enable_progress_bar()


def _refuse(*_args: object) -> None:
    raise AssertionError("a local folder must not reach for the network")
