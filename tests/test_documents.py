"""What the documents point to exists."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
"""Not the decision records: they say what was decided then, and paths move on."""
MADE = (ROOT / "tests/bench/after.json", ROOT / "deploy/secrets")
"""What commands make, and what is in it."""
OURS = tuple(f"{folder}/" for folder in ("services", "contracts", "tests", "deploy", "docs", "requirements"))


def pointed_to(document: Path) -> Iterator[Path]:
    """Link targets, from the document's folder; paths in backticks, from the root."""
    text = document.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            yield document.parent / target
    for code in re.findall(r"`([^`\s<>*]+)`", text):
        if code.startswith(OURS):
            yield from (ROOT / path for path in alternatives(code.partition("::")[0]))


def alternatives(path: str) -> Iterator[str]:
    """``a/{b,c}/`` as both."""
    parts = [part.split(",") for part in re.split(r"[{}]", path)]
    return map("".join, product(*parts))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_and_path_exists(document: Path) -> None:
    missing = [
        path
        for path in pointed_to(document)
        if not path.exists() and not any(path.is_relative_to(made) for made in MADE)
    ]
    assert missing == []


def named_tests(document: Path) -> Iterator[tuple[str, str]]:
    """File and function of each test in backticks."""
    yield from re.findall(r"`(tests/[^`]*?\.py)::(\w+)`", document.read_text())


@cache
def functions_of(path: str) -> frozenset[str]:
    """The functions of a file of tests."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(each.name for each in ast.walk(tree) if isinstance(each, functions))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    assert [f"{path}::{test}" for path, test in named_tests(document) if test not in functions_of(path)] == []


def test_every_kind_of_fault_has_a_case_and_a_sibling() -> None:
    kinds = (ROOT / "docs/faults.md").read_text().split("\n## ")[1:]
    assert [int(kind.split()[0]) for kind in kinds] == list(range(1, len(kinds) + 1))
    assert len(kinds) >= 20
    for kind in kinds:
        rows = [line for line in kind.splitlines() if "::test_" in line]
        siblings = [row for row in rows if "*sibling:*" in row]
        assert 0 < len(siblings) < len(rows), kind


def test_braces_are_alternatives() -> None:
    assert list(alternatives("a/{b,c}/d")) == ["a/b/d", "a/c/d"]
