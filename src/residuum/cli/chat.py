"""residuum chat RUN."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from residuum.cli.decoding import Decoding, check_text, note, note_passed, open_reader
from residuum.cli.options import parse
from residuum.errors import InputError
from residuum.train.chat import Chat

USAGE = """Write a text by turns with a trained run: a line of yours, and what follows it.

A run that answers questions (data.answer) is asked one a line. /reset begins a new document, /quit or the end of the
input ends; Ctrl-C ends an answer that takes too long. A line of a pipe that cannot be read is answered with an empty
one, and the exit status is 2.
"""


@dataclass(frozen=True)
class Options(Decoding):
    """Write a text by turns with a trained run."""

    temperature: float | None = None
    """Below 1 likelier tokens are preferred, 0 takes the likeliest. None: 0 for a run that answers questions, else
    0.8."""


def main(args: list[str]) -> int:
    """Answer each line of the standard input; what is not an answer goes to standard error."""
    options = parse(Options, args, "chat", text=USAGE)
    sampling = options.sampling(options.temperature or 0.0)
    if sys.stdin is None:
        raise InputError("standard input is closed: type into a terminal, or pipe lines into it")
    reader = open_reader(options)
    if options.temperature is None and reader.mark is None:  # a text has many continuations, a question one answer
        sampling = replace(sampling, temperature=0.8)
    rng = np.random.default_rng(options.seed)
    chat = Chat(reader.decoder, reader.tokenizer, sampling, rng, options.max_new_tokens, options.stop, reader.mark)
    person = sys.stdin.isatty()
    if person:
        with contextlib.suppress(ImportError):  # not every system has it
            import readline  # noqa: F401 - lines can be edited, and those before come back
        what = "a question" if reader.mark is not None else "a line of the text"
        note(f"type {what}; /reset begins a new document, Ctrl-C ends an answer, Ctrl-D ends")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # for check_text to find, so that the next line can be read
    told, status = False, 0
    for number, line in enumerate(_lines(person, "> " if person and sys.stdout.isatty() else ""), 1):
        if line == "/quit":
            break
        if line == "/reset":
            chat.reset()
            continue
        try:
            with _interrupting(chat) if person else contextlib.nullcontext():
                _answer(chat, line)
        except InputError as error:
            note(str(error) if person else f"line {number}: {error}")
            if not person:
                print(flush=True)  # so that the answers stand in the lines of their questions
                status = 2
        if chat.text.forgotten and not told:
            note_passed(reader.decoder.context)
            told = True
    return status


def _lines(person: bool, prompt: str) -> Iterator[str]:
    """What is typed or piped, until its end."""
    try:
        if not person:  # input() would take a pipe, too, but only beside an open standard error
            for line in iter(sys.stdin.readline, ""):
                yield line.rstrip("\r\n").removeprefix("\ufeff")
            return
        while True:
            yield input(prompt).removesuffix("\r")
    except EOFError:
        if prompt:
            print()
    except UnicodeError:
        raise InputError(f"standard input is not {sys.stdin.encoding} text") from None


def _answer(chat: Chat, line: str) -> None:
    check_text(line, "standard input")
    end = ""
    for piece in chat.turn(line):
        print(piece, end="", flush=True)
        end = piece[-1:] or end
    if end != "\n":
        print(flush=True)


@contextlib.contextmanager
def _interrupting(chat: Chat) -> Iterator[None]:
    """Ctrl-C ends the answer; a second one, where the first has no effect yet, the program."""
    before = signal.getsignal(signal.SIGINT)

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        chat.interrupt()

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
