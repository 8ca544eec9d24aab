"""The command `residuum`: one file per verb."""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module

VERBS = {
    "train": "train a Transformer from a recipe, or go on with a run",
    "audit": "find a model's residual connections and judge what flows through them",
    "generate": "continue a text with a trained run",
    "chat": "write a text by turns with a trained run, or ask it questions",
    "export": "write a trained run for another runtime: transformers, llama.cpp, or packed ternary weights",
    "import": "make a run of a ternary model that transformers wrote",
    "study": "run experiments with seeds: depth, claims, or one connection against another; killed, they go on",
    "check": "measure every backward that is derived by hand against finite differences and autograd",
}

HELP = """usage: residuum VERB ...

See, verify and train the residual stream of any Transformer.

{verbs}

residuum VERB --help explains a verb. Exit status: 0 fine, 1 findings at or above --fail-on or an error
above its bound, 2 bad input.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    args = sys.argv[1:] if argv is None else argv
    if sys.stdout is None:
        return _complain("standard output is closed: leave it open, or send it to /dev/null")
    if not args or args[0] in ("-h", "--help"):
        print(HELP.format(verbs="\n".join(f"  {verb:<10}{text}" for verb, text in VERBS.items())), end="")
        return 0
    if args[0] == "--version":
        from importlib.metadata import version

        print(f"residuum {version('residuum')}")
        return 0
    if args[0] not in VERBS:
        print(f"residuum: no verb '{args[0]}': choose {', '.join(VERBS)}", file=sys.stderr)
        return 2
    return _run(args[0], args[1:])


def _run(verb: str, args: list[str]) -> int:
    try:
        from residuum.errors import InputError
        from residuum.stream import TraceError

        try:
            module = import_module(f"residuum.cli.{verb}")  # PyTorch loads here, not before
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(errors="replace")  # not every terminal knows every character
            status = module.main(args)
            sys.stdout.flush()
        except (InputError, TraceError) as error:
            return _complain(str(error))
        return status
    except KeyboardInterrupt:
        print("\nresiduum: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return _unread()
    except SystemExit as stop:  # Rich's answer to the same
        if isinstance(stop.__context__, BrokenPipeError):
            return _unread()
        raise
    except OSError as error:
        from residuum.files import refusal

        return _complain(f"{error.filename or 'standard input or output'}: {refusal(error)}")


def _unread() -> int:
    """Whoever read our output has gone; Python must not try again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 2


def _complain(message: str) -> int:
    print(f"residuum: {' '.join(message.split())}", file=sys.stderr)
    return 2
