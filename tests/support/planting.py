"""Planting deliberate faults, so that one which fails by itself is seen: it fits the code no more, and shows nothing.

Its error would look like what it is meant to cause, as the roles survive it, and break promises by that.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest

OF_ITS_OWN = (AttributeError, TypeError, NameError, ImportError)
"""What code raises that does not fit the code it calls, or is called by."""

Plant = Callable[[pytest.MonkeyPatch], None]
Report = Callable[[Exception], None]


class BrokenPlantError(Exception):
    """A planted fault raised an error of its own, so nothing is known of what would catch it."""


@contextmanager
def planting(report: Report) -> Iterator[pytest.MonkeyPatch]:
    """A patch for a ``Plant``; ``report`` is called with each error of its own that what it sets raises."""
    with pytest.MonkeyPatch.context() as patch:
        set_plainly = patch.setattr

        def set_guarded(target: object, name: str, value: object) -> None:
            set_plainly(target, name, _guarded(value, report))

        patch.setattr = set_guarded  # type: ignore[method-assign, assignment]
        yield patch


def _guarded(planted: Any, report: Report) -> Any:
    if isinstance(planted, type):
        for name, each in list(vars(planted).items()):
            if inspect.isfunction(each):
                setattr(planted, name, _guarded(each, report))
        return planted
    if not inspect.isfunction(planted):
        return planted
    if inspect.isasyncgenfunction(planted):

        @wraps(planted)
        async def generated(*arguments: Any, **options: Any) -> Any:
            with _reported(report):
                async for each in planted(*arguments, **options):
                    yield each

        return generated
    if inspect.iscoroutinefunction(planted):

        @wraps(planted)
        async def awaited(*arguments: Any, **options: Any) -> Any:
            with _reported(report):
                return await planted(*arguments, **options)

        return awaited

    @wraps(planted)
    def called(*arguments: Any, **options: Any) -> Any:
        with _reported(report):
            return planted(*arguments, **options)

    return called


@contextmanager
def _reported(report: Report) -> Iterator[None]:
    try:
        yield
    except OF_ITS_OWN as error:
        report(error)
        raise
