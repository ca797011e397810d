"""What a reply calls its targets."""

from __future__ import annotations

import pytest

from model.replies import bare_phrase


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        ("Sure, the red star is", "red star"),
        ("and a blue square", "blue square"),
        (", and the inner ring at", "inner ring"),
        ("It is red star:", "red star"),
        ("It is", ""),
        ("", ""),
        ("You can see the cat here:", "cat"),
        ("The masks of the cups are", "cups"),
        ("There are two birds. The larger one is shown by", "larger one"),
        ("the man in the red coat", "man in the red coat"),
        ("Isaac Newton", "Isaac Newton"),
        ("thematic map", "thematic map"),
        ("a cup of tea, which is on the table, is", "cup of tea, which is on the table"),
        ("the house is", "house"),
        ("the this", ""),
    ],
)
def test_a_target_is_called_by_its_name_alone(words, phrase):
    assert bare_phrase(words) == phrase
