"""The order of places in VK's history, and their text on the bus."""

import itertools

import pytest

from fetcher.core.history import Position

TEXTS = {
    "0": Position(0, 0),
    "12345": Position(0, 12345),
    "12345+500": Position(0, 12345, 500),
    "1:30": Position(1, 30),
    "1:30+500": Position(1, 30, 500),
    "1:0+1": Position(1, 0, 1),
    "9007199254740993": Position(0, 2**53 + 1),
    "9" * 30: Position(0, 10**30 - 1),
}


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_of_a_position(text: str) -> None:
    """An epoch or a part of 0 is left out, so that version 1.1 can read nearly all positions."""
    assert str(TEXTS[text]) == text
    assert Position.parse(text) == TEXTS[text]


@pytest.mark.parametrize(
    "text",
    ["", " ", "ts", "-5", "+5", "1.5", "1e5", "5+", "5+-1", ":5", "1:", "1:2:3", "1+2+3", "5 ", "5\n", "٣", "1:٣",
     "5+٣", "1" * 31, "1" * 10 + ":5", "5+" + "1" * 10],
)  # fmt: skip
def test_text_that_is_not_a_position(text: str) -> None:
    """Text of any other form is refused."""
    with pytest.raises(ValueError, match="not a position"):
        Position.parse(text)


def test_positions_are_in_order() -> None:
    """A later epoch is later whatever its ts, and pieces are between VK's answers; numbers are compared as numbers."""
    order = ["9", "9+9", "9+10", "10", "10+1", "100", "1:3", "1:3+2", "1:20", "2:0", "10:0"]
    for earlier, later in itertools.pairwise(map(Position.parse, order)):
        assert earlier < later
