"""The nouns that the loop shares with both sides: places in VK's history, its answers, names, what is committed."""

import re
from typing import Any, NamedTuple, Self


class Position(NamedTuple):
    """A place in VK's history; positions are compared as tuples.

    `epoch` counts how often VK has restarted its numbering, `ts` is VK's, and `part` is how many updates of VK's answer
    at `ts` are included. The text on the bus leaves out what is 0: "12345", "12345+500", "1:30", "1:30+500".
    """

    epoch: int
    ts: int
    part: int = 0

    def __str__(self) -> str:
        """Return the text on the bus."""
        return f"{self.epoch}:" * bool(self.epoch) + str(self.ts) + f"+{self.part}" * bool(self.part)

    def followed_by(self, ts: int) -> Self:
        """Return the place where VK goes on at `ts`: in the next epoch if that is lower."""
        return type(self)(self.epoch + (ts < self.ts), ts)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text on the bus; raise ValueError if it is not a position."""
        found = re.fullmatch(r"(?:([0-9]{1,9}):)?([0-9]{1,30})(?:\+([0-9]{1,9}))?", text)
        if not found:
            raise ValueError("not a position")
        return cls(*(int(number or 0) for number in found.groups()))


class Answer(NamedTuple):
    """VK's answer to a poll: the updates after the ts `since`, up to and including `until`; `size` is in bytes.

    If VK no longer has what is between the ts that was polled and `since`, `gap` says why. A ts that is lower than the
    one before means that VK has restarted its numbering.
    """

    since: int
    until: int
    updates: list[Any]
    size: int = 0
    gap: str = ""


class Name(NamedTuple):
    """A name at VK; a chat has only `name`, and all fields are empty if VK knows no name."""

    name: str = ""
    firstname: str = ""
    lastname: str = ""
    nick: str = ""


class Entry(NamedTuple):
    """An event as it is published: `text` is its JSON in UTF-8, `date` when VK says it was sent (Unix time), or 0."""

    id: str
    event_type: str
    text: bytes
    date: int = 0


class DeadLetter(NamedTuple):
    """What cannot be published: `id` is remembered in `seen` ("" is not), `fields` are the entry of the stream."""

    id: str
    fields: dict[str, str]


class Outcome(NamedTuple):
    """What the bus did with a commit: the checkpoint afterwards (None: there is none), and the entries it recorded.

    `left_out` updates came so late that `seen` may have forgotten them.
    """

    checkpoint: Position | None
    recorded: list[Entry | DeadLetter]
    left_out: int = 0
