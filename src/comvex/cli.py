"""The command line: each command parses its arguments and calls one function elsewhere, which is imported only then."""

from __future__ import annotations

import _thread
import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Protocol

import tyro
from tyro.conf import FlagCreatePairsOff

import comvex
from comvex.allocator import keep_freed_memory
from comvex.commands.app import App
from comvex.commands.bench import Bench
from comvex.commands.convert import Convert
from comvex.commands.data import Data
from comvex.commands.evaluate import Evaluate
from comvex.commands.explain import Explain
from comvex.commands.export import Export
from comvex.commands.options import no_such
from comvex.commands.predict import Predict
from comvex.commands.runs import Runs
from comvex.commands.study import RunStudy
from comvex.commands.train import Train
from comvex.errors import UserError
from comvex.help import unwrap_texts


class Command(Protocol):
    """A dataclass whose fields are the arguments; the first line of its docstring is what ``comvex --help`` says."""

    def run(self) -> int:
        """Do it; returns the exit code."""
        ...


COMMANDS: dict[str, type[Command]] = {
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "explain": Explain,
    "app": App,
    "convert": Convert,
    "export": Export,
    "data": Data,
    "runs": Runs,
    "bench": Bench,
    "study": RunStudy,
}


def overview() -> str:
    """What ``comvex --help`` prints: the commands, each by the first sentence of its own help."""
    lines = [f"  comvex {name:<10} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: comvex COMMAND [ARGUMENTS], comvex COMMAND --help, comvex --version",
            "",
            "ConViT: vision transformers that start as convolutions and learn from few pictures.",
            "",
            *lines,
            "",
            "A first round, without any file of your own:",
            "  comvex predict convit_fashion_mnist",
            "  comvex train --out runs/first",
            "  comvex evaluate runs/first",
        ]
    )


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments name; leaves by ``SystemExit`` after help or arguments that it does not have."""
    name, *rest = arguments
    if name not in COMMANDS:
        raise no_such("command", name, COMMANDS)
    command, program = COMMANDS[name], f"comvex {name}"
    if command is Train:
        rest = Train.name_first(rest)
    if command is Data and rest and not rest[0].startswith("-") and rest[0] != "check":
        raise UserError(f"There is no comvex data {rest[0]}: did you mean comvex data check {rest[0]}?")
    default = Train.default(rest) if command is Train else None
    if {"-h", "--help"} & set(rest):
        unwrap_texts(command, default)
        # Of the arguments, tyro's usage has those that are still to be given
        program = " ".join([program, *itertools.takewhile(lambda word: not word.startswith("-"), rest)])
    if default is None:
        return tyro.cli(command, prog=program, args=rest, config=(FlagCreatePairsOff,))
    while True:  # until the recipe that was parsed is the one whose values it started from
        parsed = tyro.cli(Train, prog=program, args=rest, default=default, config=(FlagCreatePairsOff,))
        fitting = Train.starting_from(parsed.name, parsed.recipe.model.preset)
        if fitting == default:
            return parsed
        default = fitting


class ToldToEnd(SystemExit):
    """What SIGTERM raises. Where something swallows it, as a bare ``except`` in an imported module does, its end is the
    signal's next arrival; while clean-up goes on it is alive, so that nothing interrupts that.
    """

    __del__ = staticmethod(partial(_thread.interrupt_main, signal.SIGTERM))


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Within it SIGTERM ends the process as an error does, so that what is half written goes.

    Only the main thread can arrange that. A run that is trained finishes its step instead (``training/stopping.py``).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise ToldToEnd(128 + number)  # as the shell has it

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0, or 2 with one sentence on standard error for what the user got wrong.

    So does a file or folder that the system does not let be read or written.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(overview())
            return 0
        if arguments == ["--version"]:
            print(f"comvex {comvex.__version__}")
            return 0
        with ending_on_sigterm():
            command = parse(arguments)
            keep_freed_memory()
            return command.run()
    except UserError as error:
        print(f"comvex: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as the shell has it
    except OSError as error:
        if error.filename is None or error.strerror is None:  # no file is to blame, but a connection perhaps
            raise
        print(f"comvex: {error.filename} cannot be read or written: {error.strerror}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = "; an unfinished run goes on when its command is repeated" * (arguments[0] in ("train", "study"))
        print(f"comvex: interrupted{goes_on}.", file=sys.stderr)
        return 130
