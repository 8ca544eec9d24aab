"""`python -m residuum.engine.scalar` as a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from residuum.engine.scalar.__main__ import main

ALONE = """
import runpy, sys
before = set(sys.modules)
try:
    runpy.run_module("residuum.engine.scalar", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    assert not stop.code, stop.code
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print("beyond the standard library:", *sorted(loaded - set(sys.stdlib_module_names)))
"""


def test_it_trains_with_python_alone(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("anna\nhannah\nada\n\notto\n")
    command = [sys.executable, "-c", ALONE, str(file), "--steps", "80"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines, last = done.stdout.splitlines()
    assert first.startswith("4 words of 6 letters")
    losses = [float(found[1]) for line in lines if (found := re.search(r"of 80  ([\d.]+) nats", line))]
    assert len(losses) == 10
    assert losses[-1] < losses[0] / 2
    words = lines[10:]
    assert len(words) == 20
    assert {"anna", "hannah", "ada", "otto"} & set(words)
    assert last == "beyond the standard library: residuum"


def test_one_seed_is_one_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "words.txt"
    file.write_text("a-word-that-is-longer-than-the-context\nb\n")
    outputs = []
    for seed in ("1", "1", "2"):
        assert main([str(file), "--steps", "3", "--seed", seed]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, [], "cannot be read: No such file"),
        (b"", [], "holds no word: give a text file"),
        (b" \n\n", [], "holds no word"),
        (b"a\xff", [], "is not UTF-8 text (byte 1)"),
        (b"a", ["--steps", "0"], "--steps is 0: give at least 1"),
        (b"a", ["--steps", "many"], "invalid int value: 'many': see --help"),
        (b"a", ["--stride", "2"], "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_line(
    content: bytes | None, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "words.txt"
    if content is not None:
        file.write_bytes(content)
    assert main([str(file), *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("residuum: ")
    assert message in said.err
    assert said.err.count("\n") == 1
