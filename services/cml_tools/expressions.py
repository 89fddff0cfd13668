"""Whether an expression of Prometheus names only metrics that there are, with labels that they have."""

import re
from collections.abc import Iterator

from cml_workers.foundation.metrics import Declared, declared

OF_TARGETS = frozenset({"job", "instance"})
"""Labels that Prometheus gives to whatever it scrapes."""
_NAME = re.compile(r"\bcml_\w+")
_SELECTOR = re.compile(r"\b(cml_\w+)\{([^}]*)\}")
_GROUPS = re.compile(r"\bby \(([^)]*)\)")
_LABEL = re.compile(r"(\w+)\s*[=!]~?")


def series() -> dict[str, Declared]:
    """By the name of each series, the metric that it belongs to."""
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}
    return {each.name + suffix: each for each in declared() for suffix in suffixes.get(each.kind, ("",))}


def metrics_of(expression: str) -> list[Declared]:
    """Those of ours that it names. Raises ValueError: there is no such metric, or it has no such label."""
    known = series()
    names = dict.fromkeys(_NAME.findall(expression))
    wrong = [name for name in names if name not in known] or list(_without_labels(expression, known))
    if wrong:
        raise ValueError(f"{expression}: no metric has {', '.join(wrong)}")
    return list(dict.fromkeys(known[name] for name in names))


def _without_labels(expression: str, known: dict[str, Declared]) -> Iterator[str]:
    """What it asks for that no metric has."""
    for name, selected in _SELECTOR.findall(expression):
        yield from (
            f"{name}{{{label}}}" for label in _LABEL.findall(selected) if label not in _labels(known, name)
        )
    every = set().union(*(_labels(known, name) for name in _NAME.findall(expression)))
    for group in _GROUPS.findall(expression):
        yield from (label for label in re.findall(r"\w+", group) if label not in every | OF_TARGETS)


def _labels(known: dict[str, Declared], name: str) -> frozenset[str]:
    le = {"le"} if name.endswith("_bucket") else ()
    return OF_TARGETS.union(known[name].labels, le)
