"""Texts of others, as a terminal may show them."""

import re

_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"""C0, DEL and C1, by which a text would command the terminal; what changes the direction of what follows, or breaks lines, or
is not seen (Unicode 15.1, 23.2); and halves of surrogates, which cannot be written. Joiners are letters of a kind, and stay."""


def visible(text: str, keep: str = "\n\t") -> str:
    """The text with every control character escaped, as Python does, but those to keep."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def visible_json(text: str) -> str:
    """The same for JSON, which stays exact: what it leaves as it is, it can also escape."""
    if text.isascii() and "\x7f" not in text:
        return text
    return _CONTROLS.sub(lambda found: found[0] if found[0] in "\n\t" else f"\\u{ord(found[0]):04x}", text)


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
