"""What the documents point to exists."""

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
"""Not the decision records: they say what was decided then, and paths move on."""
GENERATED = ROOT / "tests/bench/after.json"
OURS = tuple(f"{folder}/" for folder in ("services", "contracts", "tests", "deploy", "docs", "requirements"))


def pointed_to(document: Path) -> Iterator[Path]:
    """Link targets, from the document's folder; paths in backticks, from the root."""
    text = document.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            yield document.parent / target
    for code in re.findall(r"`([^`\s<>*]+)`", text):
        if code.startswith(OURS):
            yield from (ROOT / path for path in alternatives(code))


def alternatives(path: str) -> Iterator[str]:
    """``a/{b,c}/`` as both."""
    parts = [part.split(",") for part in re.split(r"[{}]", path)]
    return map("".join, product(*parts))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_and_path_exists(document: Path) -> None:
    missing = [path for path in pointed_to(document) if not path.exists() and path != GENERATED]
    assert missing == []


def test_braces_are_alternatives() -> None:
    assert list(alternatives("a/{b,c}/d")) == ["a/b/d", "a/c/d"]
