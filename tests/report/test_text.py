"""Numbers and nouns as people write them."""

from __future__ import annotations

import pytest

from cspine.report.text import count_noun, format_p


@pytest.mark.parametrize(
    ("number", "noun", "words"),
    [
        (1, "slice", "1 slice"),
        (2, "slice", "2 slices"),
        (0, "patient", "0 patients"),
        (4, "series", "4 series"),
        (2, "study", "2 studies"),
        (1, "study", "1 study"),
    ],
)
def test_a_number_and_its_noun(number: int, noun: str, words: str) -> None:
    assert count_noun(number, noun) == words


@pytest.mark.parametrize(
    ("p", "words"), [(None, "–"), (0.0004, "< 0.001"), (0.001, "0.001"), (0.0382, "0.038")]
)
def test_a_p_value_is_never_written_as_nought(p: float | None, words: str) -> None:
    assert format_p(p) == words
