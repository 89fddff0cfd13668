"""The check of words finds what it lists, in names and across lines, and nothing else."""

import pytest

from cml_tools.english import left_out


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("the caller's wish", "wish"),
        ("what is still OWED", "OWED"),
        ("def test_a_wake_up_is_lost():", "wake"),
        ("class ForgetfulStore:", "Forgetful"),
        ("the message is put\n    # aside", "put aside"),
        ("for ever", "for ever"),
        ("the adapter told-off", "told"),
    ],
)
def test_a_word_that_is_left_out_is_found(text: str, word: str) -> None:
    assert [found for _, found, _ in left_out("a.py", text)] == [word]


@pytest.mark.parametrize(
    "text",
    [
        "allowed and borrowed",
        "forever",
        "the queue cml.ec2.wakes",
        "reclaimed",
        "file.tell()",
        "unquestioned",
    ],
)
def test_other_words_are_not(text: str) -> None:
    assert list(left_out("a.py", text)) == []


def test_a_use_is_shown_with_its_line_and_what_to_say() -> None:
    assert list(left_out("a.py", "one\ntwo anew")) == [(2, "anew", "again, new")]


def test_a_word_of_the_field_is_accepted_in_its_file() -> None:
    assert list(left_out("contracts/cml_contracts/tokens.py", "the claims of the token")) == []
