"""The command line."""

import sys


def main() -> None:
    """Entry point of the ``cml-workers`` command. Ctrl-C ends it without a traceback also while it loads."""
    try:
        from cml_workers.cli.app import app  # noqa: PLC0415 - takes most of the time until something happens
    except KeyboardInterrupt:
        sys.exit(130)
    app()
