"""residuum chat, through a pipe and at a terminal."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

import pytest

from residuum.cli import main
from residuum.model import Sampling, generate
from residuum.train import RunFolder


def told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, *args: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    status = main(["chat", *map(str, args)])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def answers(run: Path, question: str) -> str:
    folder = RunFolder.open(run)
    end = folder.tokenizer.separator
    prompt = [end, *folder.tokenizer.encode(question).tolist()]
    tokens = generate(folder.model(), prompt, 9, Sampling(0))
    return folder.tokenizer.decode(list(takewhile(lambda token: token != end, tokens)))


def test_questions_are_answered_one_a_line(answers_run: Path, monkeypatch, capsys) -> None:
    status, out, err = told(monkeypatch, capsys, "12+7\n3*4=\n12+7\n", answers_run, "--max-new-tokens", 9)
    assert (status, err) == (0, "")
    assert out.splitlines() == [answers(answers_run, question) for question in ("12+7=", "3*4=", "12+7=")]


def test_lines_make_one_text(noise_run: Path, monkeypatch, capsys) -> None:
    args = [noise_run, "--max-new-tokens", 4, "--seed", 7]
    status, both, err = told(monkeypatch, capsys, "the\nand", *args)
    assert status == 0
    _, first, _ = told(monkeypatch, capsys, "the", *args)
    _, second, _ = told(monkeypatch, capsys, "and", *args)
    assert both.startswith(first)
    assert both != first + second
    assert err.count("\n") == err.count("has passed the model's context of 16 tokens") == 1
    greedy = [*args, "--temperature", 0]
    _, afresh, _ = told(monkeypatch, capsys, "the\n/reset\nand\n/quit\nthe\n", *greedy)
    assert afresh == told(monkeypatch, capsys, "the", *greedy)[1] + told(monkeypatch, capsys, "and", *greedy)[1]


def test_a_line_at_fault_of_a_pipe_has_an_empty_answer(answers_run: Path, noise_run: Path, monkeypatch, capsys) -> None:
    status, out, err = told(monkeypatch, capsys, "12+7\n1 2\n3*4\n", answers_run, "--max-new-tokens", 9)
    assert status == 2
    assert out.splitlines() == [answers(answers_run, "12+7="), "", answers(answers_run, "3*4=")]
    assert "line 2: the character ' ' is not in the text" in err
    assert err.count("\n") == 1
    command = [sys.executable, "-m", "residuum", "chat", noise_run, "--temperature", "0", "--max-new-tokens", "4"]
    done = subprocess.run(command, input=b"\xff\nthe\n", capture_output=True)
    plain = subprocess.run(command, input=b"the\n", capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"\n" + plain.stdout)
    assert done.stderr == b"residuum: line 1: standard input is not UTF-8 text\n"
    with_mark = subprocess.run(command, input=b"\xef\xbb\xbfthe\n", capture_output=True)
    assert (with_mark.returncode, with_mark.stdout) == (0, plain.stdout)
    odd = subprocess.run(command, input=b"the", capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-16"})
    assert (odd.returncode, odd.stderr.count(b"Traceback")) == (2, 0)
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat", str(noise_run)]) == 2
    assert "standard input is closed" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="because Windows has no pseudo-terminals")
def test_at_a_terminal_an_answer_can_be_ended(answers_run: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "residuum", "chat", str(answers_run), "--max-new-tokens", "100000000"]
    command += ["--temperature", "9", "--stop", "never"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, start_new_session=True)
    os.close(theirs)

    def until(end: bytes) -> bytes:
        shown, last = b"", time.monotonic() + 120
        while not shown.endswith(end):
            assert select.select([ours], [], [], last - time.monotonic())[0], shown
            shown += os.read(ours, 1000)
        return shown

    try:
        until(b"> ")
        os.write(ours, b"1 2\n")
        until(b"> ")
        os.write(ours, b"12+7\n")
        shown = b""
        while not shown.partition(b"12+7\r\n")[2]:  # what follows the terminal's echo is the answer
            shown += os.read(ours, 1000)
        process.send_signal(signal.SIGINT)  # what the terminal does for Ctrl-C
        until(b"> ")
        os.write(ours, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(ours)
        err = process.stderr.read().decode().splitlines()
        process.stderr.close()
    assert "type a question" in err[0]
    assert "the character ' '" in err[1]
