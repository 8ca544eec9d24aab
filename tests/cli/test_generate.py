"""residuum generate: the text as it comes, and beside it what there is to say."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from residuum.cli import main
from residuum.model import Sampling, generate
from residuum.train import RunFolder


def written(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[str, list[str]]:
    assert main(["generate", *map(str, args)]) == 0
    shown = capsys.readouterr()
    return shown.out, shown.err.splitlines()


def fails(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    assert main([str(arg) for arg in args]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err


@pytest.mark.parametrize(
    ("flags", "sampling"),
    [
        ([], Sampling(0.8)),
        (["--temperature", "0"], Sampling(0)),
        (["--temperature", "1.5", "--top-k", "3"], Sampling(1.5, 3)),
        (["--top-p", "0.5"], Sampling(0.8, None, 0.5)),
    ],
)
def test_it_writes_the_prompt_and_what_the_library_generates(
    flags: list[str], sampling: Sampling, noise_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder.open(noise_run)
    end = folder.tokenizer.separator
    tokens = []
    for token in generate(folder.model(), [end, *b"the"], 40, sampling, 7):
        if token == end:
            break
        tokens.append(token)
    out, _ = written(capsys, noise_run, "--prompt", "the", "--max-new-tokens", 40, "--seed", 7, *flags)
    assert out == "the" + folder.tokenizer.decode(tokens) + "\n"
    assert len(tokens) > 10


def test_every_piece_is_shown_at_once(
    noise_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        shown: list[str]

        def flush(self) -> None:
            self.shown.append(self.getvalue())

    terminal = Terminal()
    terminal.shown = []
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["generate", str(noise_run), "--prompt", "the", "--max-new-tokens", "40"]) == 0
    assert terminal.shown[0] == "the"
    lengths = np.diff([len(text) for text in terminal.shown])
    assert len(lengths) > 20
    assert lengths.max() <= 4


def test_a_stop_text_ends_it(noise_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, _ = written(capsys, noise_run, "--temperature", 0, "--prompt", "the", "--max-new-tokens", 40)
    said = whole.removeprefix("the")
    stop = said[9:12]
    out, notes = written(capsys, noise_run, "--temperature", 0, "--prompt", "the", "--stop", "never", "--stop", stop)
    assert out == "the" + said[: said.index(stop)] + "\n"
    assert int(re.search(r"; (\d+) written", notes[-1])[1]) < 40


def test_speeds_are_told_apart(noise_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    number = r"[\d,]+\.\d"
    _, notes = written(capsys, noise_run, "--prompt", "the", "--max-new-tokens", 5, "--seed", 7)
    (line,) = notes
    assert re.fullmatch(
        rf"residuum: prompt of 4 tokens read at {number} tokens/s; 5 written at {number} tokens/s", line
    )
    _, notes = written(capsys, noise_run, "--max-new-tokens", 1)
    assert re.fullmatch(rf"residuum: prompt of 1 tokens read at {number} tokens/s; 1 written", notes[-1])


def test_what_is_forgotten_is_said_once(noise_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passed = "the text has passed the model's context of 16 tokens"
    long = "the model reads the last 16 of the prompt's 21 tokens, its context"
    for prompt, new, said in (
        ("the", 12, []),
        ("the", 13, []),  # the last token is drawn and not read
        ("the", 14, [passed]),
        ("the", 90, [passed]),
        ("the stream carries e", 1, [long]),
        ("the stream carries e", 90, [long, passed]),
    ):
        _, notes = written(capsys, noise_run, "--prompt", prompt, "--max-new-tokens", new, "--seed", 7)
        for line, text in zip(notes, [*said, "tokens/s"], strict=True):
            assert text in line


@pytest.mark.parametrize("verb", ["generate", "chat"])
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--top-p", "0"], "--top-p is 0.0: give a share above 0, up to 1"),
        (["--top-p", "1.5"], "--top-p is 1.5: give"),
        (["--top-p", "nan"], "--top-p is nan: give"),
        (["--top-k", "0"], "--top-k is 0: give at least 1"),
        (["--temperature", "-1"], "--temperature is -1.0: give a finite number"),
        (["--stop", "x", "--stop", ""], "--stop is empty: give a text"),
        (["--stop", "\udcff"], "--stop is not UTF-8 text"),
        (["--seed", "-1"], "--seed is -1: give a whole number"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0: give a whole number from 1 to"),
        ([], "gone is no folder"),
    ],
)
def test_bad_values(verb: str, args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in fails(capsys, verb, "gone", *args)


def test_a_prompt_the_tokenizer_cannot_spell(answers_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the character 'x' is not in the text" in fails(capsys, "generate", answers_run, "--prompt", "x")
