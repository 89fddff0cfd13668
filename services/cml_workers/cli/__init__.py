"""The command line."""

import errno
import os
import sys

_NO_MORE_IS_TAKEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE)


def main() -> None:
    """Entry point of the ``cml-workers`` command. Ctrl-C ends it without a traceback also while it loads."""
    _open_standard_streams()
    try:
        from cml_workers.cli.app import app  # noqa: PLC0415 - takes most of the time until something happens
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in _NO_MORE_IS_TAKEN:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter would try again at its end
        sys.stderr.write(f"cml-workers: cannot write: {error.strerror}\n")
        sys.exit(1)


def _open_standard_streams() -> None:
    """Give what was closed to /dev/null: the next file or socket would take its number, and get what is printed."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, os.fdopen(number, mode))
