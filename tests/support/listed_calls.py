"""The list of the calls of EC2 (``docs/ec2-calls.md``), and what is sent without being in it."""

from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from cml_tools.ec2_calls import Action, Sent, collected, run, sent, sent_by_doctor, unlisted


@cache
def all_sent() -> tuple[Sent, ...]:
    """Every request of the adapter."""
    return _made(sent)


@cache
def all_sent_by_doctor() -> tuple[Sent, ...]:
    """Every request of the doctor."""
    return _made(sent_by_doctor)


def _made(make: Callable[[], Coroutine[Any, Any, list[Sent]]]) -> tuple[Sent, ...]:
    """In a thread, as tests have loops of their own."""
    with ThreadPoolExecutor(1) as thread:
        return tuple(thread.submit(run, make).result())


@cache
def listed() -> Mapping[str, Action]:
    return collected(all_sent())


@cache
def listed_of_doctor() -> Mapping[str, Action]:
    return collected(all_sent_by_doctor())


def not_listed(calls: Iterable[Mapping[str, Any]], among: Mapping[str, Action] | None = None) -> set[str]:
    """What calls that the simulator shows contain beyond the list; not what a test has planted to be refused."""
    return {
        f"{call['operation']}: {each}"
        for call in calls
        if not call.get("malformed")
        for each in unlisted(call["parameters"], listed() if among is None else among)
    }
