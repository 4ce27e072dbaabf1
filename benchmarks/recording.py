"""What the scripts behind docs/performance.md share: their options, and a record that a repeated command goes on with.

A record is OUT/NAME.json: the machine, and an entry for everything measured, with its key, date, exact command and the
git revision of the code.
OUT/NAME.md has the same as tables (``tables.py``), written anew after each entry.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import comvex
from comvex.allocator import keep_freed_memory
from comvex.bench.machine import describe_machine
from comvex.bench.names import Precision, Runtime
from comvex.convit.config import check_integer
from comvex.errors import UserError
from comvex.files import write_text

FOLDER = Path(__file__).parent.parent / "docs" / "results" / "performance"
HOW_OFTEN = ("rounds", "repeats")
"""What of a key says how often something was measured, and not what."""
Key = dict[str, Any]


def revision(package: Path = Path(comvex.__file__).parent) -> dict[str, Any] | None:
    """The git commit of the package, and whether its files are changed since; None outside a git checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an installed package may lie within another checkout
        return {"commit": git("rev-parse", "HEAD"), "changed": git("status", "--porcelain", ".") != ""}
    except (OSError, subprocess.CalledProcessError):
        return None


@dataclass
class Record:
    """A table's entries, each written as soon as it is measured."""

    name: str
    out: Path
    machine: dict[str, Any]
    entries: list[dict[str, Any]]
    revision: dict[str, Any] | None
    """Of the code of this process, when the record was opened."""

    @classmethod
    def open(cls, name: str, out: Path, machine: dict[str, Any], *, overwrite: bool) -> Record:
        """The record that is in ``out``, or an empty one; raises ``ValueError`` if it is another machine's."""
        there = None if overwrite else read(name, out)
        if there is None:
            return cls(name, out, machine, [], revision())
        for field in machine.keys() - {"date"}:
            if machine[field] != there["machine"].get(field, machine[field]):  # a record may be older than a field
                raise UserError(
                    f"{out / name}.json was measured with another {field}: {there['machine'].get(field)}, now "
                    f"{machine[field]}. Choose another --out, or --overwrite to begin anew."
                )
        return cls(name, out, there["machine"], there["entries"], revision())

    def find(self, key: Key) -> dict[str, Any] | None:
        """What is recorded under a key, None if it is not measured yet."""
        return next((entry for entry in self.entries if entry["key"] == key), None)

    def add(self, key: Key, found: dict[str, Any]) -> None:
        """Write an entry, with the date, the command of this process and the revision of its code."""
        made = {"date": time.strftime("%Y-%m-%d %H:%M"), "command": command(), "revision": self.revision}
        self.replace(key, {"key": key, **made, **found})
        content = {"table": self.name, "machine": self.machine, "entries": self.entries}
        write_text(self.out / f"{self.name}.json", json.dumps(content, indent=1) + "\n")
        from tables import report

        write_text(self.out / f"{self.name}.md", report(content))

    def replace(self, key: Key, entry: dict[str, Any]) -> None:
        """Take an entry in, in the place of one of the same that was measured more or less often."""
        self.entries = [there for there in self.entries if what_of(there["key"]) != what_of(key)]
        self.entries.append(entry)

    def measure(self, keys: Sequence[Key], measure: Callable[[Key], dict[str, Any]]) -> None:
        """Measure what is not recorded yet, with a line on standard error for each."""
        for number, key in enumerate(keys, start=1):
            words = ", ".join(f"{name} {value}" for name, value in key.items())
            if self.find(key) is not None:
                tell(f"{number} of {len(keys)}: {words}: recorded already")
                continue
            tell(f"{number} of {len(keys)}: {words}")
            self.add(key, measure(key))


def what_of(key: Key) -> Key:
    """What was measured, without how often."""
    return {name: value for name, value in key.items() if name not in HOW_OFTEN}


def read(name: str, out: Path) -> dict[str, Any] | None:
    """The content of a record; None if there is none."""
    file = out / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def command() -> str:
    """The command of this process, as it is repeated from the top of the repository."""
    return shlex.join(["python", os.path.relpath(sys.argv[0], FOLDER.parents[2]), *sys.argv[1:]])


def new_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all scripts have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the records (docs/results/performance)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every runtime (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="begin the record anew")
    return parser


def open_record(
    name: str, options: argparse.Namespace, *, runtimes: Sequence[Runtime] = (), precisions: Sequence[Precision] = ()
) -> Record:
    """The record of a script, with this machine; PyTorch's thread count is set to --threads, freed memory is kept."""
    check_integer("threads", options.threads, at_least=1)
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    machine = describe_machine(
        threads=options.threads, device=torch.device("cpu"), runtimes=runtimes, precisions=precisions
    )
    return Record.open(name, options.out, machine, overwrite=options.overwrite)


def run(main: Callable[[], None]) -> None:
    """Run a script; a mistake of its user is one sentence and exit code 2."""
    try:
        main()
    except UserError as error:
        tell(f"error: {error}")
        sys.exit(2)
