"""Garbage collection in a process that handles messages."""

import gc

YOUNG = 20_000
"""Objects made since the last collection; Python's default, 700, is reached with every few messages."""


def collect_seldom() -> None:
    """Call it once everything is open: what is loaded by then is kept, and no collection looks through it again.

    Messages leave no cycles but for failures, so there is little to collect, and looking for it took a sixth of the CPU of a
    command (``docs/performance.md``). Until the next collection garbage takes some megabytes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 20, 20)
