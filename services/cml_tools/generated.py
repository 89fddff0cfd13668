"""What every generator of a document has in common: it writes the file, or checks that the written one is up to date."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def write_or_check(generate: Callable[[], str], *, what: str, source: str) -> None:
    """Do what the command line says: ``--write FILE``, or ``--check FILE``, which fails if the file is not ``generate()``.

    ``what``: is generated, for the help; ``source``: from what, for the error.
    """
    parser = argparse.ArgumentParser(description=f"Generate {what} from {source}.")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--write", type=Path, metavar="FILE")
    chosen.add_argument("--check", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.write:
        arguments.write.write_text(generate())
    else:
        check(arguments.check, generate(), source)


def check(path: Path, text: str, source: str) -> None:
    """Exit with an error if the file is not there, or not this text."""
    if not path.exists() or path.read_text() != text:
        sys.exit(f"{path} does not match {source}; run: make format")
