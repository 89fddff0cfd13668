"""Whether the project's own texts use the words of ``docs/glossary.md``: names, comments, messages and documents."""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

LEFT_OUT: Mapping[str, str] = {
    r"wish(es|ed|ing|ful)?": "request, desired state; no-op, already satisfied",
    r"ow(e|es|ed|ing)": "pending, outstanding; due",
    r"put(s|ting)? aside": "retry (after)",
    r"bur(y|ies|ied|ying)": "dead-letter",
    r"doubt(s|ed|ful|less)?": "outcome uncertain, recheck",
    r"wak(e|es|en|ens|ened|ing)|woken?|wakeups?": "trigger; notify",
    r"tell(s|ing)?|told": "report, notify, publish; error text, description; distinguish",
    r"questions?": "lookup request; query",
    r"findings?": "lookup result",
    r"overt(ake|akes|aken|aking|ook)": "superseded, stale; arrive out of order",
    r"the active ones?|before our time": "leader, active instance, standby; tenure",
    r"st(and|ands|anding|ood) still": "paused",
    r"deeds?": "operator action",
    r"kept letters?": "archived dead letter",
    r"claim(s|ed|ing)?": "idempotency record",
    r"bound answers?|answers? (is|are|was|were) bound": "stored result",
    r"mend(s|ed|ing)?": "fix, repair",
    r"anew": "again, new",
    r"for ever": "without end",
    r"lea(ve|ves|ving) away|left away": "omit",
    r"in good order": "cleanly",
    r"forgetful": "in-memory",
    r"that which": "what",
    r"b(ear|ears|earing|ore|orne) with": "tolerate",
    r"manieth": "number",
    r"hitherto|hereby|thereof|whither|whence|lest|nigh": "a word of today",
}
"""What has a better name, or is used by nobody in this sense: a pattern of whole words, and what to say instead."""

NAMES = (
    r"cml[\\.]+ec2[\\.]+wakes",
    r"on_wake",
    r"claimed_actor",
    r"cml[\\.]+command[\\.]+claimed",
    r"\.tell\(\)",
)
"""Names that stay as they are: on the wire, in the store, of a library."""

FIELD_WORDS: Mapping[str, str] = {
    "contracts/cml_contracts/tokens.py": r"claims",  # of a token (RFC 7519)
    "contracts/examples/cml.lookup.requested.v1.json": r"question",  # a field on the wire
    "contracts/examples/cml.report.lookup_answered.v1.json": r"question|finding",  # likewise
    "services/cml_workers/domain/messages.py": r"question|finding",  # likewise
    "tests/fuzz/hostile.py": r"question",  # likewise
    "tests/lifecycle/test_replies.py": r"finding",  # likewise
    "services/cml_tools/english.py": r".*",  # lists them
    "tests/test_english.py": r".*",  # plants them
}
"""By file, words that are the field's own there."""

CHECKED = (
    "services",
    "contracts",
    "deploy",
    "docs",
    "tests",
    "README.md",
    "CHANGELOG.md",
    "Makefile",
    "docker-compose.yml",
)
SUFFIXES = frozenset({"", ".py", ".md", ".json", ".yml", ".yaml", ".toml", ".sh", ".conf", ".ini", ".mako"})

NOT_YET: tuple[str, ...] = ()
"""Where words are still to be replaced; ``--all`` counts them."""

_WITHIN_A_NAME = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|_|(?<=[a-z])-(?=[a-z])")
_LEFT_OUT = re.compile(
    "|".join(rf"\b(?:{pattern})\b" for pattern in LEFT_OUT).replace(" ", r"\s+(?:#\s+)?"), re.IGNORECASE
)


def texts(root: Path) -> Iterator[Path]:
    """Every checked file, by its path from ``root``."""
    for name in CHECKED:
        place = root / name
        for path in sorted(place.rglob("*")) if place.is_dir() else (place,):
            relative = path.relative_to(root)
            hidden = any(part.startswith((".", "__pycache__")) for part in relative.parts)
            if path.is_file() and not hidden and path.suffix in SUFFIXES:
                yield relative


def left_out(path: str, text: str) -> Iterator[tuple[int, str, str]]:
    """Line, word and what to say instead, for each that is used; a name counts as its words."""
    for name in NAMES:
        text = re.sub(name, "", text)
    text = _WITHIN_A_NAME.sub(" ", text)
    fitting = FIELD_WORDS.get(path, r"(?!)")
    for found in _LEFT_OUT.finditer(text):
        word = " ".join(found[0].replace("#", " ").split())
        if not re.fullmatch(fitting, word, re.IGNORECASE):
            yield text.count("\n", 0, found.start()) + 1, word, _instead(word)


def _instead(word: str) -> str:
    return next(say for pattern, say in LEFT_OUT.items() if re.fullmatch(pattern, word, re.IGNORECASE))


def main() -> None:
    """Print each use of a word that is left out, and fail if there is any."""
    parser = argparse.ArgumentParser(description="Check the words of the project's texts.")
    parser.add_argument(
        "--all", action="store_true", help="also where words are still to be replaced; and count"
    )
    everywhere = parser.parse_args().all
    root = Path(__file__).parents[2]
    uses: Counter[str] = Counter()
    for path in texts(root):
        name = path.as_posix()
        if everywhere or not name.startswith(NOT_YET):
            for line, word, instead in left_out(name, (root / path).read_text(errors="ignore")):
                sys.stdout.write(f"{name}:{line}: {word!r}: say {instead}\n")
                uses["/".join(path.parts[:3])] += 1
    for place, count in uses.most_common() if everywhere else ():
        sys.stdout.write(f"{count:4} {place}\n")
    sys.exit(1 if uses else 0)


if __name__ == "__main__":
    main()
